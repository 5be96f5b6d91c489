# SPDX-License-Identifier: Apache-2.0
"""A model ready for use: logits, log-likelihoods, text. `llm.load` opens one from disk."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm.errors import ConfigError
from llm.generate import scoring, seq2seq
from llm.generate.buckets import bucket, count_program, layout, parts
from llm.generate.engine import Engine, Options
from llm.generate.requests import Completion, Piece, Request
from llm.generate.sampling import Settings, bias_of
from llm.models import tuning
from llm.models.config import TransformerConfig

DEFAULT_TOKENS = 128  # generated where max_tokens is not given, as far as the model has room
_SMALLEST = 16
_SPREAD = 0x9E3779B9  # odd: seeds of equal prompts stay distinct modulo 2**32

# A text, the ids of one, or the messages of a chat to answer.
Prompt = str | Sequence[Any]


@dataclasses.dataclass
class LanguageModel:
    """A transformer with its parameters and tokenizer.

    Attributes:
        config: what the model is; dtype as loaded.
        model: the Flax module.
        params: nested dict of arrays.
        tokenizer: see `llm.tokenizers`; None where the source has none.
        mesh: over which the parameters are laid, or None.
        starts_texts: whether a prompt is given the token that started texts in training.
        ends_texts: whether what an encoder-decoder reads is given the end token (T5).
        step: of the checkpoint, where there is one.
    """

    config: TransformerConfig
    model: Any
    params: Any
    tokenizer: Any = None
    mesh: Any = None
    starts_texts: bool = False
    step: int | None = None
    ends_texts: bool = False

    def logits(self, tokens: Any, decoder_tokens: Any = None) -> jax.Array:
        """Return logits float32 [B, T, V] of token ids [B, T].

        An encoder-decoder reads `tokens` and gives the logits of `decoder_tokens`.

        Raises:
            ConfigError: wrong shape, ids beyond the vocabulary, or too many tokens.
        """
        both = self.config.architecture == "encoder_decoder"
        if both != (decoder_tokens is not None):
            raise ConfigError(
                f"The model is a {self.config.architecture.replace('_', '-')}.",
                "Call logits(tokens, decoder_tokens)." if both else "Call logits(tokens).",
            )
        ids, segments = self._pad(tokens)
        inputs = {"segments": segments}
        rows, length = np.shape(tokens)
        if both:
            encoder, encoder_segments = ids, segments
            ids, segments = self._pad(decoder_tokens)
            inputs = {"segments": segments, "encoder_tokens": encoder}
            inputs["encoder_segments"] = encoder_segments
            rows, length = np.shape(decoder_tokens)
        with layout(self.mesh):
            return _logits(self.model, self.params, ids, inputs)[:rows, :length]

    def classify(self, texts: Sequence[Any]) -> list[Any]:
        """Return the most likely class of each text: (label, probability).

        A model that classifies tokens takes lists of words and returns a list for each.

        Raises:
            ConfigError: the model has no classification head.
        """
        from llm.generate import classifying

        self._need_tokenizer()
        return classifying.classify(self, texts)

    def scores(self, answers: Sequence[Any], batch: int = 16) -> np.ndarray:
        """Return a reward model's scores of whole answers: float32 [len(answers)].

        Args:
            answers: chats that end with the answer (lists of messages), or lists of token ids.
            batch: how many to read together.

        Raises:
            ConfigError: the model has no score head, or an answer cannot be read.
        """
        from llm.generate import classifying

        return classifying.scores(self, answers, batch)

    def loglikelihood(
        self, pairs: Sequence[tuple[str, str]], **options: int
    ) -> list[tuple[float, bool]]:
        """Score each (context, continuation): (sum of log-probabilities, is greedy).

        Rules of tokenisation and truncation: see `llm.generate.scoring`. Options: batch_tokens,
        max_batch.
        """
        return scoring.loglikelihood(
            self.model, self.params, self._need_tokenizer(), pairs, self.mesh, **options
        )

    def loglikelihood_rolling(self, texts: Sequence[str], **options: int) -> list[float]:
        """Return the log-probability of each whole text, in windows of the model's length."""
        return scoring.loglikelihood_rolling(
            self.model, self.params, self._need_tokenizer(), texts, self.mesh, **options
        )

    def generate(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[str]:
        """Continue prompts; return the continuations only.

        Args:
            prompts: one or several texts, chats (lists of {"role", "content"}) or lists of ids.
            max_tokens: how many tokens to generate at most, by default 128 or what fits.
            temperature: 0 (default) is greedy.
            top_k, top_p, min_p, repetition_penalty, logit_bias: see `llm.generate.sampling`.
            stop: a string or several; text ends before the first of them.
            seed: an integer for all, or one per prompt. A prompt that is repeated in the list
                gets a new draw each time; otherwise a text depends on its prompt and seed only.

        Raises:
            ConfigError: a setting is out of range, or prompt and max_tokens exceed the model.
        """
        return [completion.text for completion in self.complete(prompts, **options)]

    def complete(self, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Completion]:
        """Continue prompts as `generate` does; return tokens, logprobs, text and reason."""
        requests = self.requests(prompts, **options)
        if self._reads_whole:
            return seq2seq.complete(self.model, self.params, self.tokenizer, requests, self.mesh)
        return self._own_engine().complete(requests)

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """Yield the continuation of one prompt piece by piece; options as for `generate`."""
        return (piece.text for piece in self.stream_pieces(prompt, **options) if piece.text)

    def stream_pieces(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """Yield pieces with their tokens, logprobs and, in the last one, why it ended."""
        (request,) = self.requests([prompt], **options)
        self._need_tokenizer()
        if self._reads_whole:
            seq2seq.check(request, self.config)
            return seq2seq.stream(self.model, self.params, self.tokenizer, request, self.mesh)
        return iter(self._own_engine().submit(request))

    def engine(
        self, options: Options | None = None, draft: "LanguageModel | None" = None
    ) -> Engine:
        """Make an engine of its own for requests that come and go; see `Engine`.

        Args:
            draft: a small decoder with the same vocabulary that guesses tokens ahead.

        Raises:
            ConfigError: one of the models is no causal decoder, or their vocabularies differ.
        """
        for lm in (self, draft or self):
            if lm.config.architecture != "decoder":
                raise ConfigError(
                    f"The engine runs decoders; this model is an {lm.config.architecture}.",
                    "Use generate(...) for encoder-decoders, logits(...) for encoders.",
                )
            if lm.config.prefix_lm:
                raise ConfigError(
                    "The engine reads prompts in pieces; this model is a prefix language model, "
                    "whose prompts see themselves both ways.",
                    "Use generate(...), or tune the model causally (objective.name=sft) first.",
                )
        pair = None
        if draft is not None:
            if draft.config.vocab_size != self.config.vocab_size:
                raise ConfigError(
                    f"The draft has {draft.config.vocab_size} tokens, the model "
                    f"{self.config.vocab_size}.",
                    "Choose a draft with the model's own tokenizer.",
                )
            pair = (draft.model, draft.params)
        return Engine(self.model, self.params, self.tokenizer, self.mesh, options, pair)

    def _own_engine(self) -> Engine:
        """Return the engine that `generate` and `stream` share, made at the first call."""
        engine, params = self.__dict__.get("_engine", (None, None))
        if engine is None or params is not self.params:
            engine = self.engine()
            self.__dict__["_engine"] = engine, self.params
        return engine

    @property
    def _reads_whole(self) -> bool:
        return self._reads_then_writes or self.config.prefix_lm

    @property
    def _reads_then_writes(self) -> bool:
        return self.config.architecture == "encoder_decoder"

    def requests(
        self,
        prompts: Prompt | Sequence[Prompt],
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Mapping[int, float] | None = None,
        stop: str | Sequence[str] = (),
        seed: int | Sequence[int] = 0,
    ) -> list[Request]:
        """Turn prompts and options into requests, as `generate` does."""
        if self.config.architecture == "encoder" or self.config.classifies:
            what = "classifies" if self.config.classifies else "is an encoder"
            raise ConfigError(
                f"Text is generated by decoders; this model {what}.",
                "Use classify(...) or logits(...) for its predictions.",
            )
        listed = [self.encode_prompt(prompt) for prompt in as_prompts(prompts)]
        seeds = _seeds(listed, seed)
        settings = Settings(
            temperature, top_k, top_p, min_p, repetition_penalty, 0, bias_of(logit_bias)
        )
        stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
        if stops:
            self._need_tokenizer()
        stop_ids = self.tokenizer.stop_ids if self.tokenizer is not None else ()
        requests = []
        for ids, own in zip(listed, seeds, strict=True):
            read = 0 if self._reads_then_writes else len(ids)
            room = max(1, self.config.max_length - read)
            limit = min(DEFAULT_TOKENS, room) if max_tokens is None else int(max_tokens)
            requests.append(
                Request(tuple(ids), limit, settings._replace(seed=own), stop_ids, stops)
            )
        return requests

    def encode_prompt(self, prompt: Prompt) -> list[int]:
        """Return the ids that a model reads for a text, a chat or a list of ids."""
        if isinstance(prompt, str):
            ids = self._need_tokenizer().encode(prompt)
            if self.ends_texts and self._reads_then_writes:
                ids = [*ids, self.tokenizer.eos_id]
            start = [scoring.prefix_id(self.tokenizer)]
            return start + ids if self.starts_texts or not ids else ids
        if all(isinstance(part, Mapping) for part in prompt) and len(prompt):
            return self._need_tokenizer().apply_chat_template(
                prompt, add_generation_prompt=True, tokenize=True
            )
        ids = [int(part) for part in prompt]
        if ids and not 0 <= min(ids) <= max(ids) < self.config.vocab_size:
            raise ConfigError(
                f"A prompt has token ids outside 0..{self.config.vocab_size - 1}.",
                "Encode it with this model's own tokenizer.",
            )
        return ids

    def merge(self) -> "LanguageModel":
        """Return the same function as a plain model: low-rank updates become part of the weights.

        Raises:
            ConfigError: the adapter adds virtual tokens, which no weights stand for.
        """
        if self.config.adapter.name == "none":
            return self
        config, params = tuning.merge(self.config, self.params)
        return dataclasses.replace(
            self, config=config, model=type(self.model)(config), params=params
        )

    def save(self, directory: Any, format: str = "native", kind: str = "") -> None:
        """Write the model as "native" (for `llm.load` and training), "hf" or "gguf".

        The latter two hold adapters merged. "adapter" and "peft" write the adapter alone, for
        `llm.load(base, adapter=directory)`; the second in the format of the PEFT library.

        Args:
            directory: a new folder; for GGUF also the name of a .gguf file.
            kind: of the numbers in GGUF: F32, F16, BF16, Q8_0, Q4_0 or Q4_1; "" loses nothing.

        Raises:
            ConfigError: an unknown format, or one that cannot hold this model.
            StorageError: the folder cannot be written.
        """
        from llm.generate import saving

        saving.save(self, directory, format, kind)

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ConfigError(
                "The model was loaded without a tokenizer.",
                "Put its tokenizer/ folder (or tokenizer.json) beside it, or give token ids.",
            )
        return self.tokenizer

    def _pad(self, tokens: Any) -> tuple[jax.Array, jax.Array]:
        """Check ids [B, T] and pad T to a bucket; return them with their segments."""
        ids = np.asarray(tokens)
        if ids.ndim != 2 or not ids.size or ids.dtype.kind not in "iu":
            raise ConfigError(
                f"Token ids are {ids.dtype}{list(ids.shape)}.", "Give integers [batch, length]."
            )
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ConfigError(
                f"Token ids reach {ids.max()}; the vocabulary has {self.config.vocab_size}.",
                "Encode the text with this model's own tokenizer.",
            )
        length = ids.shape[1]
        if length > self.config.max_length:
            raise ConfigError(
                f"{length} tokens are given; the model has {self.config.max_length} positions.",
                "Shorten the input.",
            )
        more = bucket(length, _SMALLEST, self.config.max_length) - length
        spare = -len(ids) % parts(self.mesh)
        padded = np.pad(ids.astype(np.int32), ((0, spare), (0, more)))
        segments = np.pad(np.ones(ids.shape, np.int32), ((0, spare), (0, more)))
        return jnp.asarray(padded), jnp.asarray(segments)


@functools.partial(jax.jit, static_argnames=("model",))
def _logits(model: Any, params: Any, tokens: jax.Array, inputs: dict[str, jax.Array]) -> jax.Array:
    count_program("logits")
    return model.apply({"params": params}, tokens, **inputs)


def as_prompts(prompts: Any) -> list[Any]:
    """Return a list of prompts, where one alone may have been given."""
    if isinstance(prompts, str):
        return [prompts]
    listed = list(prompts)
    alone = all(isinstance(part, Mapping | int | np.integer) for part in listed)
    return [listed] if listed and alone else listed


def _seeds(prompts: Sequence[Sequence[int]], seed: int | Sequence[int]) -> list[int]:
    """Return one seed per prompt; the k-th copy of a prompt gets another one than the first."""
    if not isinstance(seed, int | np.integer):
        if len(seed) != len(prompts):
            raise ConfigError(
                f"{len(seed)} seeds are given for {len(prompts)} prompts.", "Give one per prompt."
            )
        return [int(one) for one in seed]
    copies: dict[tuple[int, ...], int] = {}
    seeds = []
    for prompt in map(tuple, prompts):
        copy = copies[prompt] = copies.get(prompt, -1) + 1
        seeds.append((int(seed) + copy * _SPREAD) % 2**32)
    return seeds


def load(
    source: Any,
    dtype: str = "float32",
    step: int | None = None,
    mesh: Any = None,
    adapter: Any = None,
) -> LanguageModel:
    """Open a model.

    Args:
        source: a workdir or checkpoint folder of this project (the newest verified step), a
            Hugging Face folder (config.json and safetensors), or a .gguf file.
        dtype: of parameters and computation.
        step: of a checkpoint, instead of the newest.
        mesh: lays the parameters over devices; see `llm.core.sharding.make_mesh`.
        adapter: a folder of one that was saved alone (by `LanguageModel.save` or PEFT), or None.

    Raises:
        ConfigError: nothing there is a model this version reads, or parts of it do not fit.
        DataError, StorageError: files are missing or damaged.
    """
    from llm.generate import loading

    lm = loading.load(source, dtype, step, mesh)
    if adapter is None:
        return lm
    from llm.generate import attaching

    return attaching.attach(lm, adapter, dtype)
