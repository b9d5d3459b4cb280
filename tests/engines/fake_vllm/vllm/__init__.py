"""As much of vLLM's Python interface as penstock uses, with a model whose answers can be foretold.

It imitates vLLM 0.32: `AsyncEngineArgs`, `SamplingParams` and its relatives, `AsyncLLM` with `from_engine_args`, `generate`, `abort`,
`errored`, `dead_error` and `model_config.get_vocab_size()`, the fields of its outputs, and the errors that these raise, each where the
real one has it and with its parameters. Its core is a process of its own, which can be killed. It has no scheduler, no KV cache
and no weights: the next token is a function of the prompt. `bench/vllm_check.py` compares all of this with the real package.
"""

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams

__all__ = ["AsyncEngineArgs", "SamplingParams"]
