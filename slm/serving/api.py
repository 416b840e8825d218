"""The server: OpenAI's completions over HTTP, health and metrics."""

import asyncio
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import torch
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from slm.generation.storyteller import Story
from slm.serving.answers import Answer, Echo, Lines, LogProbs, usage
from slm.serving.guard import HUNG_UP, Guard
from slm.serving.metrics import Metrics
from slm.serving.protocol import (
    Allowed,
    CompletionRequest,
    InvalidRequestError,
    Prompt,
    make_stories,
    read_prompts,
)
from slm.serving.scheduler import Job, QueueFullError, Scheduler

_FAILURES = {
    "timeout": (504, "the request took longer than this server allows"),
    "error": (500, "the server could not generate the story"),
    "cancelled": (503, "the server is stopping"),
}
_BUSY = "the queue is full; try again later"
Queue = asyncio.Queue[tuple[Job, str, bool]]
"""Of what a scheduler passes to `Job.notify`."""


def make_app(scheduler: Scheduler, allowed: Allowed, key: str | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        scheduler: Generates the stories; it is closed when the application ends.
        allowed: What requests may ask for.
        key: The API key, which all but `/health` and `/openapi.json` require, or None.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        scheduler.close()

    metrics = Metrics(scheduler)
    # The pages of docs_url load their scripts from elsewhere.
    app = FastAPI(title="slm", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, observe=metrics.observe_request)
    _add_error_handlers(app)
    private = [Depends(_key_check(key))] if key else []
    model = {"id": allowed.model, "object": "model", "created": 0, "owned_by": "slm"}
    completions = Completions(scheduler, allowed, metrics)

    app.post("/v1/completions", dependencies=private)(completions.answer)

    @app.get("/v1/models", dependencies=private)
    async def models() -> Lines:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", dependencies=private)
    async def one_model(name: str) -> Lines:
        if name != allowed.model:
            raise InvalidRequestError(f"there is no model {name!r}", "model", 404)
        return model

    @app.get("/health")
    async def health() -> Lines:
        return {"status": "ok"}

    @app.get("/metrics", dependencies=private)
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=metrics.media_type)

    return app


def _key_check(key: str) -> Callable[[Request], None]:
    expected = f"Bearer {key}".encode()

    def check(request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, expected):  # in a time that does not depend on them
            raise InvalidRequestError("a wrong API key, or none", None, 401)

    return check


def _add_error_handlers(app: FastAPI) -> None:
    """Gives errors the form that OpenAI's clients expect."""

    def answer(status: int, message: str, parameter: str | None = None) -> JSONResponse:
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": message, "type": kind, "param": parameter, "code": None}
        headers = {"Retry-After": "5"} if status == 503 else {}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": error}, status, headers)

    @app.exception_handler(InvalidRequestError)
    async def invalid(request: Request, error: InvalidRequestError) -> JSONResponse:
        return answer(error.status, str(error), error.parameter)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(part for part in first["loc"][1:2] if isinstance(part, str))
        found = f"{field}: {first['msg']}" if field else first["msg"]
        return answer(400, found.encode(errors="replace").decode(), field or None)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return answer(500, "internal server error; see the server's log")


class Completions:
    """Answers requests for completions."""

    def __init__(self, scheduler: Scheduler, allowed: Allowed, metrics: Metrics) -> None:
        self._scheduler = scheduler
        self._tokenizer = scheduler.storyteller.tokenizer
        self._allowed = allowed
        self._metrics = metrics
        self._one_at_a_time = asyncio.Lock()
        self._scoring = 0  # prompts whose log-probabilities are wanted

    async def answer(self, body: CompletionRequest, request: Request) -> Response:
        """Generates the stories of a request, whole or as events."""
        prompts = await run_in_threadpool(read_prompts, body, self._allowed, self._tokenizer)
        stories = make_stories(body, prompts, self._tokenizer)
        head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._allowed.model,
        }
        echoes = [await self._echo(body, prompt) for prompt in prompts]
        answer = Answer(body, prompts, stories, echoes, self._tokenizer)
        if body.max_tokens == 0:
            return JSONResponse(head | answer.whole())
        queue: Queue = asyncio.Queue()
        jobs = self._submit(stories, queue, every_token=body.stream)
        self._metrics.prompt_tokens.inc(usage(prompts, [])["prompt_tokens"])
        if body.stream:
            events = self._events(head, answer, jobs, queue)
            return EventStream(events, lambda: self._scheduler.cancel(jobs))
        try:
            answered = await self._wait(request, jobs, queue)
        finally:
            self._scheduler.cancel(jobs)
        if not answered:
            return Response(status_code=HUNG_UP)
        for job in jobs:
            if job.failure:
                raise HTTPException(*_FAILURES[job.failure])
            self._metrics.observe_story(job)
        return JSONResponse(head | answer.whole())

    def _submit(self, stories: Sequence[Story], queue: Queue, every_token: bool) -> list[Job]:
        loop = asyncio.get_running_loop()

        def notify(job: Job, piece: str, last: bool) -> None:
            if every_token or last:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(queue.put_nowait, (job, piece, last))

        try:
            return self._scheduler.submit(stories, notify)
        except QueueFullError as error:
            raise HTTPException(503, _BUSY) from error

    async def _wait(self, request: Request, jobs: list[Job], queue: Queue) -> bool:
        """Waits for all jobs; False if the client hangs up before."""

        async def finish() -> None:
            for _ in jobs:
                await queue.get()

        async def hang_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        finished, gone = asyncio.create_task(finish()), asyncio.create_task(hang_up())
        try:
            await asyncio.wait({finished, gone}, return_when=asyncio.FIRST_COMPLETED)
            return finished.done()
        finally:
            finished.cancel()
            gone.cancel()

    async def _events(
        self, head: Lines, answer: Answer, jobs: list[Job], queue: Queue
    ) -> AsyncIterator[str]:
        """Server-sent events: a piece of a story each, and at the end [DONE]."""
        left = len(jobs)
        while left:
            job, piece, last = await queue.get()
            if job.failure:
                status, message = _FAILURES[job.failure]
                yield _event({"error": {"message": message, "code": status}})
                return
            if last:
                left -= 1
                self._metrics.observe_story(job)
            if entry := answer.part(jobs.index(job), piece, last):
                yield _event(head | {"choices": [entry]})
        if answer.body.stream_options and answer.body.stream_options.include_usage:
            yield _event(head | {"choices": [], "usage": usage(answer.prompts, answer.stories)})
        yield "data: [DONE]\n\n"

    async def _echo(self, body: CompletionRequest, prompt: Prompt) -> Echo:
        """What precedes a story if the request wants an echo."""
        if not body.echo:
            return Echo("", None)
        if body.logprobs is None:
            return Echo(prompt.text, None)
        if self._scoring > self._scheduler.limits.queue:
            raise HTTPException(503, _BUSY)
        self._scoring += 1
        try:
            async with self._one_at_a_time:
                found = await run_in_threadpool(self._prompt_log_probs, prompt, body.logprobs)
        finally:
            self._scoring -= 1
        return Echo(prompt.text, LogProbs(self._tokenizer).entries(*found))

    @torch.inference_mode()
    def _prompt_log_probs(
        self, prompt: Prompt, likeliest: int
    ) -> tuple[list[int], list[float | None], list[list[tuple[int, float]]]]:
        """Tokens of a prompt's text, their log-probabilities, and the likeliest tokens instead."""
        model = self._scheduler.storyteller.model
        device = model.token_embedding.weight.device
        shown = prompt.ids[prompt.hidden :]
        if not shown:
            return [], [], []
        logits_TV = model(torch.tensor([prompt.ids[:-1] or prompt.ids], device=device))[0]
        log_probs_TV = logits_TV.float().log_softmax(dim=-1)[max(0, prompt.hidden - 1) :]
        known = shown if prompt.hidden else shown[1:]
        values = [log_probs_TV[t, token].item() for t, token in enumerate(known)]
        top = log_probs_TV[: len(known)].topk(min(likeliest, log_probs_TV.size(1)))
        pairs = [
            list(zip(tokens, best, strict=True))
            for tokens, best in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        unknown = len(shown) - len(known)  # nothing precedes the first token
        return shown, [*[None] * unknown, *values], [*[[]] * unknown, *pairs]


class EventStream(StreamingResponse):
    """Server-sent events.

    Args:
        events: The events.
        finish: Called at the end, also if the client hangs up before the first event.
    """

    def __init__(self, events: AsyncIterator[str], finish: Callable[[], None]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._finish = finish

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._finish()


def _event(plain: Lines) -> str:
    return f"data: {json.dumps(plain, ensure_ascii=False)}\n\n"
