"""Arguments of the engine."""

from dataclasses import dataclass
from typing import Any, Optional


@dataclass
class AsyncEngineArgs:
    model: str = "Qwen/Qwen3-0.6B"
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    seed: int = 0
    max_model_len: Optional[int] = None  # noqa: UP045 - as old as vLLM's own interpreters
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    max_num_seqs: Optional[int] = None  # noqa: UP045
    disable_log_stats: bool = False
    enforce_eager: bool = False
    enable_log_requests: bool = False
    logits_processors: Any = None
