"""The end of the report: definitions, settings, and where the result comes from."""

from __future__ import annotations

from microtome.dissection.results import Dissection
from microtome.views import Details, Section


def methods_section(found: Dissection) -> Section:
    """Return the section that defines every term and lists every setting."""
    return Section(
        "Methods and definitions",
        (
            Details(
                "Definitions",
                terms=(
                    (
                        "m(N), m(0), m(C)",
                        "the metric of the unchanged model, with every head and MLP ablated, "
                        "and with everything outside the circuit ablated",
                    ),
                    (
                        "faithfulness",
                        "(m(C) - m(0)) / (m(N) - m(0)), a ratio of means over items",
                    ),
                    (
                        "resample, mean, zero",
                        "an ablated part gives its value in the corrupt run, its mean over "
                        "train prompts of both kinds, or nothing",
                    ),
                    (
                        "closeness item by item",
                        "1 - mean |m(N) - m(C)| / mean |m(N) - m(0)|, also defined where effects "
                        "of both signs cancel, as in a twin",
                    ),
                    (
                        "guaranteed closeness",
                        "1 - max(|1 - low|, |1 - high|) of the interval of faithfulness: the "
                        "worst value that the interval allows",
                    ),
                    ("twin", "the same model with the entries of every weight tensor shuffled"),
                    ("cluster", "template and lexical frame; the unit of every interval"),
                    *(
                        ()
                        if found.located is None
                        else (("support", found.located.scores.meaning),)
                    ),
                ),
            ),
            Details(
                "Settings and time",
                terms=tuple(
                    (str(k), str(v))
                    for k, v in {
                        **found.config,
                        **{f"seconds: {k}": v for k, v in (found.seconds or {}).items()},
                    }.items()
                ),
            ),
        ),
        short="Methods",
    )


def provenance_facts(found: Dissection) -> tuple[tuple[str, str], ...]:
    """Return what the page's foot says of the run: name and value, empty ones left out."""
    facts = [("model", f"{found.model} ({found.shape})"), ("behavior", found.behavior)]
    given = found.provenance
    if given is not None:
        facts += [
            ("fingerprint", given.fingerprint),
            ("versions", ", ".join(f"{k} {v}" for k, v in given.versions.items())),
            ("seed", str(given.seed)),
            ("threads, type, device", f"{given.threads}, {given.dtype}, {given.device}"),
            ("made", given.created),
        ]
    return tuple((k, v) for k, v in facts if v)
