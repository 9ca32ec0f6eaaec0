"""One huge row in a batch must not cost the others the latents that they keep."""

from __future__ import annotations

import pytest
import torch

from microtome.sae import SAE, Architecture
from microtome.sae.selecting import products
from microtome.sae.selecting.selection import Selector


@pytest.mark.parametrize("activation", ["topk", "abstopk", "batchtopk"])
@pytest.mark.parametrize("factor", [16.0, 1e3, 1e6])
def test_outliers_among_rows(
    activation: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)
    make = Architecture(64, 1024, activation=activation, k=8)  # type: ignore[arg-type]
    coder = SAE(make, seed=1)
    usual = torch.randn(600, 64, generator=torch.Generator().manual_seed(0))
    rows = usual.clone()
    rows[500] *= factor  # beyond the rows that estimates are checked on
    selector = Selector("int8")
    selector.select(make, coder.weights, usual)
    found = selector.select(make, coder.weights, rows)
    assert found is not None and selector.precision == "int8"
    with torch.no_grad():
        pre = (rows - coder.b_dec) @ coder.W_enc.T + coder.b_enc
    worth = (pre.abs() if activation == "abstopk" else pre.relu()).double()
    if activation == "batchtopk":
        wanted = torch.zeros_like(worth).view(-1)
        wanted[worth.flatten().topk(8 * 600).indices] = 1
        wanted = wanted.view_as(worth)
    else:
        wanted = torch.zeros_like(worth).scatter(1, worth.topk(8, dim=1).indices, 1)
    # all but what ties within rounding
    assert float(wanted[found.entries.bags, found.entries.latents].mean()) > 0.999
