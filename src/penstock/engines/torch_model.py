"""Loading a transformers model in the worker that runs it: device, threads, dtype; pickles only if they were asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError


def cores(replicas: int) -> int:
    """Threads for one of so many replicas: what its process was given, else an equal share of the cores."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, here // replicas)


def load(auto: str, folder: Path, *, threads: int, dtype: str | None, pickles: bool, spare: tuple[str, ...] = ()) -> Any:
    """The model that transformers' class `auto` makes of a folder, ready to run where it is to run.

    `dtype`: a name of torch's; by default float32 on a processor, and on a GPU what the checkpoint has. Weights that the
    files lack would be random, so they are refused with ConfigError, unless their name begins with one of `spare`.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"this model runs on torch and transformers ({error}): pip install 'penstock[transformers]'"
        ) from None
    device = os.environ.get("PENSTOCK_DEVICE") or "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"this torch ({torch.__version__}) cannot use {device}; on=penstock.Process() is the processor")
    if device == "cpu":
        torch.set_num_threads(threads)
    kind = dtype or ("float32" if device == "cpu" else "auto")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model, told = getattr(transformers, auto).from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=None if pickles else True,
            dtype=kind if kind == "auto" else getattr(torch, kind),
            ignore_mismatched_sizes=True,  # to be told of them
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, AttributeError) as error:
        why = str(error).partition("\n")[0]  # what follows is a list of all that it can
        raise ConfigError(f"{folder}: transformers {transformers.__version__} cannot load it ({auto}): {why}") from error
    wrong = {*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])}
    lacking = sorted(name for name in wrong if not name.startswith(spare))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ConfigError(f"{folder} lacks weights of {type(model).__name__}: {', '.join(lacking[:3])}{more}")
    return model.eval().requires_grad_(False).to(device)


def padded(texts: Any, device: Any) -> tuple[Any, Any]:
    """Token ids [texts, longest] and their mask, padded behind."""
    import torch

    longest = max(map(len, texts))
    ids = torch.zeros(len(texts), longest, dtype=torch.long)
    mask = torch.zeros(len(texts), longest, dtype=torch.long)
    for n, text in enumerate(texts):
        ids[n, : len(text)] = torch.as_tensor(text)
        mask[n, : len(text)] = 1
    return ids.to(device), mask.to(device)
