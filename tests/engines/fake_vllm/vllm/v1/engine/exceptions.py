"""Errors of the engine."""

from vllm.exceptions import VLLMServerError


class EngineGenerateError(VLLMServerError):
    pass


class EngineDeadError(VLLMServerError):
    def __init__(self, *args, suppress_context=False, **kwargs):
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        super().__init__(message, *args, **kwargs)
        self.__suppress_context__ = suppress_context
