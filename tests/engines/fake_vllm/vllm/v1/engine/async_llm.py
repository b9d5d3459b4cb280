"""The engine: its core is a process that can be killed, and says a token of each request every millisecond.

A prompt's first token tells what is to come: n counts on from n, up to the request's maximum or a stop token. 90: how many
requests run, were the most at once, and were aborted. 91: the engine breaks the request off. 92: it raises. 93: the pids of this
process and of the core. 94: it never says anything. 95: its queue is full.
"""

import asyncio
import json
import os
import subprocess
import sys
import threading
import weakref
from collections import deque

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import QueueOverflowError, VLLMValidationError
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

VOCABULARY = 100


class ModelConfig:
    def __init__(self, model):
        self.file = os.path.join(model, "config.json")

    def get_vocab_size(self):
        if not os.path.exists(self.file):
            return VOCABULARY
        with open(self.file) as file:
            return json.load(file)["vocab_size"]


class Request:
    def __init__(self, name, prompt, params):
        self.name = name
        self.prompt = prompt
        self.params = params
        self.said = 0
        self.queue = deque()
        self.ready = asyncio.Event()

    def put(self, output):
        self.queue.append(output)
        self.ready.set()

    async def get(self):
        while not self.queue:
            self.ready.clear()
            await self.ready.wait()
        found = self.queue.popleft()
        if isinstance(found, Exception):
            raise found
        return found


class AsyncLLM:
    def __init__(self, args):
        if args.dtype == "broken":
            raise RuntimeError("Engine core initialization failed.")
        self.args = args
        self.model_config = ModelConfig(args.model)
        self.vocabulary = self.model_config.get_vocab_size()
        self.requests = {}
        self.most = self.aborted = 0
        self.engine_dead = False
        self.output_handler = None
        self.loop = None
        self.core = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        weakref.finalize(self, self.core.kill)  # also at the end of the process, as the real one
        threading.Thread(target=self._monitor, daemon=True).start()

    @classmethod
    def from_engine_args(cls, engine_args, start_engine_loop=True, usage_context=None, stat_loggers=None):
        assert isinstance(engine_args, AsyncEngineArgs)
        return cls(engine_args)

    def _monitor(self):
        self.core.wait()
        self.engine_dead = True
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._propagate)

    def _propagate(self):
        for request in self.requests.values():
            request.put(EngineDeadError(suppress_context=True))

    @property
    def errored(self):
        return self.engine_dead

    @property
    def dead_error(self):
        return EngineDeadError()

    def _run_output_handler(self):
        if self.output_handler is None:
            self.loop = asyncio.get_running_loop()
            self.output_handler = asyncio.create_task(self._output_handler())

    async def _output_handler(self):
        while not self.errored:
            await asyncio.sleep(0.001)
            for request in list(self.requests.values()):
                if request.prompt[0] != 94:
                    self._say(request)

    def _say(self, request):
        first, params = request.prompt[0], request.params
        tokens, reason = [(first + request.said + 1) % self.vocabulary], None
        if first == 90:
            tokens, reason = [len(self.requests), self.most, self.aborted], "stop"
        elif first == 91:
            tokens, reason = [], "abort"
        elif first == 92:
            del self.requests[request.name]
            request.put(RuntimeError("a bug"))
            return
        elif first == 93:
            tokens, reason = [os.getpid(), self.core.pid], "stop"
        request.said += 1
        if reason is None and tokens[0] in (params.stop_token_ids or ()):
            reason = "stop"
        elif reason is None and request.said >= params.max_tokens:
            reason = "length"
        logprobs = None
        if params.logprobs is not None:
            logprobs = [
                {
                    t: Logprob(-0.5, 1),
                    **{(t + n + 1) % self.vocabulary: Logprob(-1.0 - n, n + 2) for n in range(params.logprobs)},
                }
                for t in tokens
            ]
        if reason is not None:
            del self.requests[request.name]
        completion = CompletionOutput(0, "", tokens, None, logprobs, reason, tokens[0] if reason == "stop" else None)
        request.put(RequestOutput(request.name, None, request.prompt, None, [completion], reason is not None))

    async def generate(
        self,
        prompt,
        sampling_params,
        request_id,
        *,
        prompt_text=None,
        lora_request=None,
        tokenization_kwargs=None,
        trace_headers=None,
        priority=0,
        data_parallel_rank=None,
    ):
        request = None
        try:
            if self.errored:
                raise EngineDeadError()
            assert prompt["type"] == "token"
            ids = prompt["prompt_token_ids"]
            if len(ids) > self.args.max_model_len:
                raise VLLMValidationError(
                    f"This model's maximum context length is {self.args.max_model_len} tokens.",
                    parameter="input_tokens",
                    value=len(ids),
                )
            if ids[0] == 95:
                raise QueueOverflowError()
            assert request_id not in self.requests
            assert sampling_params.output_kind is RequestOutputKind.DELTA and not sampling_params.detokenize
            self._run_output_handler()
            request = self.requests[request_id] = Request(request_id, ids, sampling_params)
            self.most = max(self.most, len(self.requests))
            finished = False
            while not finished:
                output = await request.get()
                finished = output.finished
                yield output
        except asyncio.CancelledError:
            if request is not None:
                await self.abort(request_id)
            raise
        except (EngineDeadError, VLLMValidationError, QueueOverflowError):
            raise
        except Exception as error:
            raise EngineGenerateError() from error

    async def abort(self, request_id, internal=False):
        """As older versions: a generator that is closed has not aborted its request."""
        await asyncio.sleep(0)
        if self.requests.pop(request_id, None) is not None:
            self.aborted += 1
