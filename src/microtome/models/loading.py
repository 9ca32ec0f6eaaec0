"""Opening a model from a folder, a hub id, a specimen's name or a module."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from microtome.errors import (
    ConfigError,
    ModelFileError,
    ModelNotFoundError,
    TokenizerError,
    UnsafeFileError,
    nearest,
)
from microtome.models import hf, transformer_lens
from microtome.models.specimens import plain_specimen, specimen_folder, specimen_names

_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".pickle")

_NUMBERS = re.compile(r"\.\d+\.")

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Opened:
    """A module with its tokenizer, before its anatomy is found.

    Attributes:
        module: In evaluation mode.
        tokenizer: Its tokenizer, or None.
        name: Where it came from.
    """

    module: nn.Module
    tokenizer: Any
    name: str


def open_module(
    source: str | Path | nn.Module,
    *,
    tokenizer: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> Opened:
    """Open a model without looking inside.

    Args:
        source: A folder with ``config.json`` and safetensors (of Hugging Face or TransformerLens),
            a hub id, a specimen's name, or a module (used as it is).
        tokenizer: A tokenizer, its folder or hub id; by default the one in the folder.
        device: Where the model goes; it stays where it is by default.
        dtype: Type of the weights: float32 by default for folders, unchanged for modules.

    Raises:
        ModelNotFoundError: If there is no such folder, hub id or specimen.
        ModelFileError: If the files are corrupt, truncated or do not fit together.
        UnsafeFileError: If the weights are only there as pickles.
        ConfigError: If device or dtype are unknown.
    """
    wanted, device = _dtype(dtype), _device(device)
    if isinstance(source, nn.Module):
        module = source.eval()
        if device is not None or wanted is not None:
            module = module.to(device=device, dtype=wanted)
        return Opened(module, _tokenizer(tokenizer, None), type(source).__name__)
    folder, name = _locate(source)
    plain = plain_specimen(folder) or transformer_lens.open_folder(folder)
    if plain is not None:
        module = plain.to(wanted or torch.float32)
    else:
        module = _from_pretrained(folder, wanted or torch.float32)
    if device is not None:
        module = module.to(device)
    return Opened(module.eval(), _tokenizer(tokenizer, folder), name)


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device={device!r} is unknown; expected cpu, cuda or cuda:0.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={device!r}: torch sees no GPU here. Take cpu.")
    return chosen


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown; expected one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _locate(source: str | Path) -> tuple[str, str]:
    """Return a folder or hub id, and the model's name."""
    if not isinstance(source, str | Path):
        raise ModelNotFoundError(
            f"A model is a folder, a hub id, a specimen's name or an nn.Module; got "
            f"{type(source).__name__}."
        )
    text = str(source)
    if not text.strip():
        raise ModelNotFoundError(
            "The model's name is empty; give a folder, a hub id or a specimen."
        )
    path = Path(text).expanduser()
    specimen = specimen_folder(text)
    if path.is_dir():
        _check_folder(path)
        return str(path), path.resolve().name
    if path.is_file():
        if path.suffix in _PICKLES:
            raise UnsafeFileError(
                f"{path} is a pickle; reading it could run foreign code, so it is refused. Give a "
                "folder with config.json and safetensors."
            )
        raise ModelNotFoundError(
            f"{path} is a file; give the folder that holds it with its config.json."
        )
    if specimen is not None:
        return str(specimen), text
    if path.is_absolute() or text.startswith(".") or text.count("/") > 1 or "\\" in text:
        raise ModelNotFoundError(f"There is no folder {path}.")
    return text, text


def _check_folder(path: Path) -> None:
    """Refuse a folder without a configuration or with pickles only, and a corrupt weights file."""
    config = path / "config.json"
    if not config.is_file():
        raise ModelNotFoundError(
            f"{path} has no config.json, so it is not a model folder. A TransformerLens state dict "
            "needs its HookedTransformerConfig there, with act_fn at least."
        )
    try:
        loaded = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelFileError(f"{config} cannot be read as JSON: {error}.") from None
    if not isinstance(loaded, dict) or "model_type" not in loaded:
        if isinstance(loaded, dict) and transformer_lens.is_lens_config(loaded):
            return
        raise ModelFileError(
            f"{config} names no model_type; expected a Hugging Face configuration, or one of "
            "TransformerLens, which names act_fn."
        )
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickles = [p.name for p in sorted(path.iterdir()) if p.suffix in _PICKLES]
        if pickles:
            raise UnsafeFileError(
                f"{path} holds its weights only as a pickle ({pickles[0]}); reading it could run "
                "foreign code, so it is refused. Convert it to safetensors on a machine you trust."
            )
        raise ModelFileError(f"{path} holds no *.safetensors weights.")
    for file in weights:
        _check_safetensors(file)


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            list(opened.keys())
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelFileError(
            f"{file} is not a complete safetensors file ({error}). It may be truncated: fetch it "
            "again."
        ) from None


def _from_pretrained(folder: str, dtype: torch.dtype) -> nn.Module:
    """Load a Hugging Face model of the class its configuration names."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        names = getattr(config, "architectures", None) or []
        kind = getattr(transformers, names[0], None) if names else None
        loader: Any = (
            kind if kind is not None and hasattr(kind, "from_pretrained") else AutoModelForCausalLM
        )
        with hf.quiet():
            module, info = loader.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **({"trust_remote_code": False} if loader is AutoModelForCausalLM else {}),
            )
    except OSError as error:
        raise _not_found(folder, error) from None
    except Exception as error:  # a configuration can make transformers raise anything
        raise ModelFileError(_first_line(f"{folder} cannot be opened: {error}")) from None
    missing = sorted(info.get("missing_keys") or [])
    if missing:
        raise ModelFileError(
            f"{folder}: {len(missing)} weights are missing, the first is {missing[0]}. The files "
            "do not fit the configuration."
        )
    further = _further_blocks(module, info.get("unexpected_keys") or [])
    if further:
        raise ModelFileError(
            f"{folder}: the configuration has fewer blocks than the files, which hold "
            f"{further[0]}. The files do not fit the configuration."
        )
    return module  # type: ignore[no-any-return]


def _not_found(folder: str, error: OSError) -> ModelNotFoundError:
    """Return what to say of a model that is neither here nor to be had from the hub."""
    if Path(folder).is_dir():
        return ModelNotFoundError(_first_line(f"{folder}: {error}"))
    known = specimen_names()
    close = nearest(folder, known).removeprefix("; ")
    return ModelNotFoundError(
        f"There is no folder and no specimen {folder!r} ({close or 'none is installed'}), and the "
        "Hugging Face hub has no such model or cannot be reached."
    )


def _further_blocks(module: nn.Module, unexpected: Iterable[str]) -> list[str]:
    """Return unused weights that would belong to a block like those of the module."""
    known = {_NUMBERS.sub(".N.", name) for name in module.state_dict()}
    return sorted(name for name in unexpected if _NUMBERS.sub(".N.", name) in known)


def _first_line(text: str) -> str:
    return " ".join(text.split("\n")[:2]).strip()


def _tokenizer(given: Any, folder: str | None) -> Any:
    if given is not None and not isinstance(given, str | Path):
        return given
    source = given or folder
    if source is None:
        return None
    from transformers import AutoTokenizer

    if given is None and not _has_tokenizer(str(source)):
        return None
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TokenizerError(
            _first_line(f"The tokenizer at {source} cannot be read: {error}")
        ) from None


def _has_tokenizer(source: str) -> bool:
    folder = Path(source)
    if not folder.is_dir():
        return True
    names = (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
        "tokenizer.model",
        "vocab.txt",
    )
    return any((folder / name).is_file() for name in names)
