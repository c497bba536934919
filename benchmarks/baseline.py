"""Baseline server: FastAPI around the `generate` of transformers, with the same weights and settings as Safe-CB.

`python -m benchmarks.baseline --mode single` draws one image at a time, `batched` closed batches of up to 8 waiting
requests (32 on a GPU), and `compiled` the same with the language model compiled. Prints its address when it is ready.
"""

from __future__ import annotations

import argparse
import queue
import socket
import threading
from concurrent.futures import Future
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from engine.families.janus.loading import load_janus
from engine.families.janus.random_model import GEOMETRIES, random_janus
from engine.families.random_weights import geometry_of
from engine.instructions import general_chat, read_instructions
from engine.png import encode_png, to_bytes
from engine.registry import PREFIX, find_model

TOGETHER, WAIT_S = {"cpu": 8, "cuda": 32}, 0.01


class GenerateRequest(BaseModel):
    """The fields of POST /generate that the benchmark uses; the seed has no effect on the one RNG of transformers."""

    prompt: str
    seed: int


class Generator:
    """A model by its name in SAFECB_MODEL, and one thread that draws closed batches of the waiting requests.

    That thread also loads the model: OpenMP's thread pool belongs to its first user and is slow for a second one.
    """

    def __init__(self, name: str, device: torch.device, together: int, compiled: bool) -> None:
        self._together = together
        self._waiting: queue.Queue[tuple[str, Future[bytes]]] = queue.Queue()
        loaded: Future[None] = Future()
        threading.Thread(target=self._run, args=(loaded, name, device, compiled), daemon=True).start()
        loaded.result()

    def draw(self, prompt: str) -> bytes:
        """Return the PNG of a prompt; blocks."""
        future: Future[bytes] = Future()
        self._waiting.put((prompt, future))
        return future.result()

    def _load(self, name: str, device: torch.device, compiled: bool) -> None:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16  # as Safe-CB has it
        if name.startswith(PREFIX):
            self._settings = general_chat()
            self._model, self._processor = random_janus(geometry_of(GEOMETRIES, name), device, dtype)
        else:
            folder = find_model(name)
            self._settings = read_instructions(folder)
            self._model, self._processor = load_janus(folder, device, dtype)
        self._model.train(False)
        if compiled:
            self._model.model.language_model.compile(dynamic=True)
        self._draw(["a red apple"])
        self._draw(["a red apple", "a cat"])

    def _run(self, loaded: Future[None], name: str, device: torch.device, compiled: bool) -> None:
        try:
            self._load(name, device, compiled)
        except BaseException as error:
            loaded.set_exception(error)
            return
        loaded.set_result(None)
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._together:
                try:
                    batch.append(self._waiting.get(timeout=WAIT_S))
                except queue.Empty:
                    break
            for (_, future), png in zip(batch, self._draw([prompt for prompt, _ in batch]), strict=True):
                future.set_result(png)

    def _draw(self, prompts: list[str]) -> list[bytes]:
        texts = [
            self._processor.apply_chat_template(_talk(prompt), add_generation_prompt=True, tokenize=False)
            for prompt in prompts
        ]
        inputs = self._processor(text=texts, generation_mode="image", return_tensors="pt", padding=True)
        inputs = inputs.to(self._model.device)
        with torch.no_grad():
            tokens: Any = self._model.generate(
                **inputs,
                generation_mode="image",
                guidance_scale=self._settings.sampling.guidance,
                temperature=self._settings.sampling.temperature,
                do_sample=True,
                top_k=0,  # as Safe-CB; its default of 50 would be another distribution
                use_cache=True,
            )
            images = self._model.decode_image_tokens(tokens)
        return [encode_png(picture, {}) for picture in to_bytes(images.float().permute(0, 3, 1, 2))]


def _talk(prompt: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": prompt}]}]


def app_of(generator: Generator) -> FastAPI:
    """Return the app: POST /generate returns a PNG."""
    app = FastAPI()

    @app.post("/generate")
    def generate(body: GenerateRequest) -> Response:
        return Response(generator.draw(body.prompt), media_type="image/png")

    return app


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=["single", "batched", "compiled"], required=True)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", default="cpu", choices=list(TOGETHER))
    body = parser.parse_args()
    together = 1 if body.mode == "single" else TOGETHER[body.device]
    generator = Generator(body.model, torch.device(body.device), together, body.mode == "compiled")
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"ready at http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app_of(generator), log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main()
