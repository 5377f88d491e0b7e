"""Policy: a causal LM, its tokenizer and its adapter. Samples, scores tokens, trains, saves.

The weights being trained belong to runs: a run swaps its own tensors into the model with `hold` (a change of
pointers, nothing is copied), so several runs can share one loaded model, and `reset` puts back those of the
start.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from workbench import adapters, flat, keys, layouts, quantisation, scoring, summary, trunk, worker
from workbench.adapters import folding
from workbench.errors import DataError, RunError, SettingError, did_you_mean
from workbench.heads import ValueHead
from workbench.loading import Loaded, load_parts, quiet
from workbench.pieces import Pieces
from workbench.sampling import decoder
from workbench.sampling.rollouts import Rollouts
from workbench.scoring import Scores, TokenScores

START = "start"


@worker.on_worker
def load(
    path_or_id: str | Path,
    quantize: str | Any | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
    revision: str | None = None,
    seed: int = 0,
) -> Policy:
    """A policy from "tiny" (the shipped model), a local folder, or a Hub id; whole models and PEFT adapters
    alike.

    `quantize`: None, "nf4", "int8" or a `transformers.BitsAndBytesConfig` (whose compute dtype is `dtype`); only
    adapters train then, see `quantisation`. A model saved by bitsandbytes is held as it was saved. `dtype` "auto":
    bfloat16 on a GPU that has it, else float32. `device` "auto": cuda, mps, cpu, whichever is there first. `revision`:
    branch, tag or commit of a Hub model. `seed`: of what `attach` draws. Code in a model's repository is
    never run.

    Raises SettingError for a setting that makes no sense here and DataError if there is no such model. What
    is worth knowing about the tokenizer is in `policy.notes`; what matters is also warned about.
    """
    return Policy(load_parts(path_or_id, quantize, dtype, device, revision, seed))


def from_description(record: dict[str, Any], device: str | None = None) -> Policy:
    """The policy that `describe()` wrote down: same model, same adapter, as they were before any training.

    `device`: another one than it was on. Raises as `load` does.
    """
    policy = load(
        record["model"],
        revision=record["commit"] or record["revision"],
        quantize=record["quantize"],
        dtype=record["dtype"],
        device=device or record["device"],
        seed=record["seed"],
    )
    if record["adapter"] is not None and not policy.has_adapter:
        policy.attach(adapters.from_dict(record["adapter"]))
    return policy


class Policy:
    """A causal language model that can be sampled, scored and trained. Made by `load`."""

    def __init__(self, loaded: Loaded):
        self.model = loaded.model
        """the torch module, in eval mode; whoever trains it switches dropout on and off again"""
        self.tokenizer = loaded.tokenizer
        self.origin = loaded.origin
        self.stop_ids = loaded.stop_ids
        """ids that end a completion"""
        self.notes = loaded.notes
        self.holder = START
        """whose weights the model holds now: a run's name, or "start" """
        self.pieces = Pieces(loaded.tokenizer)
        """what each token id stands for"""
        self._start = self._now()

    # ------------------------------------------------------------------ what it is

    @property
    def has_adapter(self) -> bool:
        """Whether a PEFT adapter is attached."""
        return hasattr(self.model, "peft_config")

    @property
    def adapter(self) -> Any:
        """The peft config of the adapter, or None."""
        return self.model.peft_config[self.model.active_adapter] if self.has_adapter else None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def vocab_size(self) -> int:
        """Rows of the output matrix: entries of each logit vector."""
        return trunk.base_of(self.model).config.get_text_config().vocab_size

    @property
    def filler(self) -> int:
        """The id that fills batches up. Any does; transformers warns about its pad token without a mask."""
        return 0 if self.tokenizer.pad_token_id != 0 else 1

    def describe(self) -> dict[str, Any]:
        """All that `from_description` needs to load it again, as JSON values."""
        adapter = None if self.adapter is None else adapters.to_record(self.adapter)
        return {**vars(self.origin), "adapter": adapter}

    def __repr__(self) -> str:
        return summary.of(self)

    def memory(self) -> dict[str, int]:
        """Bytes of the weights by what they are held in, adapter included, as in {"nf4": ..., "float32": ...}.

        Gradients, the optimiser's two numbers per trained parameter and activations come on top.
        """
        return quantisation.memory(self.model)

    # ------------------------------------------------------------------ weights

    @quiet()
    @worker.on_worker
    def attach(self, config: adapters.LoRA | Any) -> Policy:
        """Puts an adapter on the model: `wb.LoRA(...)` or any `peft.PeftConfig`. Only the adapter trains then.

        Its start is drawn from the policy's seed; torch's own random state is left as it was. Returns the policy.
        Raises SettingError if there is one already, if a run's weights are held, or if the adapter does not fit.
        """
        from peft import get_peft_model

        if self.has_adapter:
            raise SettingError(
                f"This policy has an adapter already ({self.adapter.peft_type.value}). Load the model again "
                "for another one, or export() this one and load the merged model."
            )
        if self.holder != START:
            raise SettingError(f"The model holds the weights of {self.holder!r}; call policy.reset() before attach.")
        config = adapters.as_peft(config, bool(self.origin.quantize))
        devices = [self.device.index or 0] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(keys.torch_seed(keys.key(self.origin.seed, "attach")))
            try:
                self.model = get_peft_model(self.model, config)
            except (ValueError, TypeError) as error:
                adapters.take_off(self.model)
                raise SettingError(
                    f"This adapter does not go on {self.origin.base}: {error}{self._layers(config)}"
                ) from error
        self.model.eval()
        self._start = self._now()
        return self

    def _layers(self, config: Any) -> str:
        wanted = getattr(config, "target_modules", None)
        names = sorted({n.rsplit(".", 1)[-1] for n, m in self.model.named_modules() if isinstance(m, nn.Linear)})
        near = "".join(did_you_mean(w, names) for w in wanted) if isinstance(wanted, (set, list)) else ""
        return f" Linear layers there: {', '.join(names)}.{near}"

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that train, by name, in the model's order: the adapter's, or all of the model's.

        Raises SettingError for a quantised model without an adapter, in which nothing can train.
        """
        if self.origin.quantize and not self.has_adapter:
            raise SettingError(
                f"The model is quantised ({quantisation.name_of(self.origin.quantize)}), and quantised weights cannot "
                "be trained. Attach an adapter, policy.attach(wb.LoRA()), or load without quantize."
            )
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad and p.is_floating_point()}

    def params(self) -> dict[str, Tensor]:
        """The tensors that `trainable()` holds now, not copies: whoever trains them clones them first."""
        return {name: p.data for name, p in self.trainable().items()}

    def _now(self) -> dict[str, Tensor]:
        return {} if self.origin.quantize and not self.has_adapter else self.params()

    def hold(self, params: dict[str, Tensor], holder: str) -> None:
        """Makes the model use these tensors, one for each of `trainable()`; nothing is copied.

        Raises RunError if names, shapes, dtypes or devices are not the model's.
        """
        mine = self.trainable()
        if params.keys() != mine.keys():
            odd = sorted(params.keys() ^ mine.keys())
            raise RunError(f"The weights of {holder!r} are not this model's: {len(odd)} names differ ({odd[0]}, ...).")
        for name, tensor in params.items():
            p = mine[name]
            if (tensor.shape, tensor.dtype, tensor.device) != (p.shape, p.dtype, p.device):
                raise RunError(
                    f"The weights of {holder!r} are not this model's: {name} is {tuple(tensor.shape)} {tensor.dtype} on"
                    f" {tensor.device}, and should be {tuple(p.shape)} {p.dtype} on {p.device}."
                )
        for name, tensor in params.items():
            mine[name].data = tensor
        self.holder = holder

    @contextlib.contextmanager
    def holding(self, params: dict[str, Tensor], holder: str = "another") -> Iterator[Policy]:
        """`hold` for the length of a `with` block; what was held before comes back, also after an error."""
        before, name = self.params(), self.holder
        self.hold(params, holder)
        try:
            yield self
        finally:
            self.hold(before, name)

    @worker.on_worker
    def reset(self) -> Policy:
        """Back to the weights of `load` or `attach`; no run is touched. Returns the policy."""
        if self._start:
            self.hold(self._start, START)
        return self

    # ------------------------------------------------------------------ scoring

    def token_scores(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        *,
        temperature: float = 1.0,
        needs: frozenset[str] = frozenset({"entropy"}),
        lines: Sequence[int] | None = None,
        groups: Sequence[int] | None = None,
        inputs: Sequence[Sequence[int]] | None = None,
        share: float = 1.0,
        value: ValueHead | None = None,
    ) -> TokenScores:
        """Scores tokens `sequences[b][starts[b]:]` of each sequence in one forward of the model as it is.

        Results are (B, T) with T the longest scored part, differentiable unless under `torch.no_grad()`; see
        `scoring.TokenScores`. `temperature` divides the logits. `needs`: see `heads.statistics`; without "entropy" in
        it the entropy is a number to look at, which spares its derivative. `lines`: sequences with the same number are
        laid end to end (see `workbench.lines`). `groups`: a number for each sequence; those with the same number share
        all tokens before their start, and all lie in one line without padding (see `workbench.flat`; not every model
        takes that, `workbench.prefixes` says which). `inputs`, `share`: see `update.Batch`. `value`: a head that says a
        number before each token. Raises DataError for a start below 1, for a group without a common prompt, and for
        inputs that do not fit.
        """

        def laid(read: Sequence[Sequence[int]] | None) -> layouts.Layout | flat.Flat:
            if groups is not None:
                return flat.layout(sequences, starts, groups, self.device, read)
            return layouts.layout(sequences, starts, self.filler, self.device, lines, read)

        batch = laid(inputs if share == 1 else None)
        if inputs is None or share == 1:
            return scoring.score(self.model, batch, temperature, needs, value)
        trunk.of(self.model)  # tried before, not with embeddings that are blended
        with trunk.blended(self.model, laid(inputs).ids, share):
            return scoring.score(self.model, batch, temperature, needs, value)

    def logits(self, ids: Tensor, keep: int) -> Tensor:
        """(B, keep, V) of the last `keep` places of `ids` (B, L)."""
        # counted from the end, so that virtual tokens of a prompt-learning adapter in front do not matter
        return trunk.last_logits(self.model, keep, input_ids=ids, use_cache=False)[0]

    @worker.on_worker
    def score(self, prompts: Sequence[Any], completions: Sequence[Any], temperature: float = 1.0) -> Scores:
        """Log-prob and entropy of each completion's tokens after its prompt, without gradients.

        A prompt is a string, a list of messages or of token ids; a completion is a string (tokenised as it stands, no
        end token added) or a list of token ids. Raises DataError if they are not as many.
        """
        from workbench import text_scores

        return text_scores.score(self, prompts, completions, temperature)

    def tokens_of(self, prompt: Any, index: int):
        """A prompt (a string, or messages) as tokens; `index` is what errors call it."""
        from workbench.tokenise import prompt as tokenise

        try:
            tokens = tokenise(prompt, self.tokenizer)
        except DataError as error:
            raise DataError(f"Prompt {index}: {error}") from error
        if not tokens.ids:
            raise DataError(f"Prompt {index} is empty; a model needs at least one token to go on from.")
        return tokens

    @contextlib.contextmanager
    def at_rest(self) -> Iterator[None]:
        """No gradients, no dropout; each module's mode comes back afterwards."""
        training = [module for module in self.model.modules() if module.training]
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True

    # ------------------------------------------------------------------ sampling

    @worker.on_worker
    def sample(
        self,
        prompts: Sequence[Any] | str,
        n: int = 4,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop_strings: Sequence[str] = (),
    ) -> Rollouts:
        """`n` completions of each prompt (a string, or a list of messages), as Rollouts grouped by prompt.

        The draws depend on `seed` and on a prompt's place in the list, and on nothing else: torch's random
        state is neither used nor moved, and a longer list starts with the same completions. `temperature` 0
        is greedy. `top_p` keeps the likeliest tokens that hold this much probability (arXiv 1904.09751), `top_k` so
        many of them, `min_p` those with this share of the likeliest one's (arXiv 2407.01082). `repetition_penalty`
        lowers the logits of tokens that stand in the prompt or the completion (arXiv 1909.05858), `stop_strings` are
        texts that end a completion, as the end token does.

        Recorded log-probs and entropies are those of softmax(logits / temperature), the model's own: before top_k,
        top_p and min_p, and without the penalty, which a trainer does not know of; so it makes samples off-policy.

        Raises SettingError for settings out of range, DataError for a prompt the model cannot take.
        """
        prompts = [prompts] if isinstance(prompts, str) or _is_messages(prompts) else list(prompts)
        decoder.check_whole("n", n, 1)
        decoder.check_whole("seed", seed, 0)
        tokens = [self.tokens_of(prompt, i) for i, prompt in enumerate(prompts)]
        row_keys = [keys.key(seed, "sample", row, sample) for row in range(len(tokens)) for sample in range(n)]
        rollouts = self.sample_prompts(
            tokens,
            n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            stop_strings=stop_strings,
            keys=row_keys,
            check=worker.check,
        )
        rollouts.prompt = [prompt for prompt in prompts for _ in range(n)]
        return rollouts

    def sample_prompts(
        self,
        prompts: Sequence[Any],
        n: int,
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        stop_strings: Sequence[str] = (),
        keys: Sequence[int],
        check: Callable[[], None] | None = None,
        on_token: Callable[[int, decoder.Drawn], None] | None = None,
    ) -> Rollouts:
        """`n` completions of each tokenised prompt (`.text`, `.ids`), drawn with one key each, prompt by prompt.

        `check()` is called before every token and may raise, `on_token(row, drawn so far)` after every one. Rows and
        groups are numbered by the prompts' places. Raises SettingError and DataError as `sample` does.
        """
        decoder.check_whole("n", n, 1)
        settings = decoder.Sampling(
            max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, stop_strings
        ).checked()
        if len(keys) != len(prompts) * n:
            raise SettingError(f"sample_prompts: {len(keys)} keys for {len(prompts)} prompts of {n} samples.")
        self.check_lengths(prompts, max_new_tokens)
        with self.at_rest(), folding.folded(self.model, max_new_tokens, len(keys)):
            drawn = decoder.decode(
                self.model,
                [prompt.ids for prompt in prompts],
                n,
                keys,
                settings,
                stop_ids=self.stop_ids,
                filler=self.filler,
                text=self.text_of,
                check=check,
                on_token=on_token,
            )
            self._note(decoder.why_plain(self.model, self.filler))
        each = [(p, s) for p in range(len(prompts)) for s in range(n)]
        return Rollouts(
            prompt=[prompts[p].text for p, _ in each],
            text=[self.text_of(d.ids) for d in drawn],
            prompt_text=[prompts[p].text for p, _ in each],
            prompt_ids=[list(prompts[p].ids) for p, _ in each],
            ids=[d.ids for d in drawn],
            group=[p for p, _ in each],
            row=[p for p, _ in each],
            sample=[s for _, s in each],
            finish_reason=[d.finish_reason for d in drawn],
            logprob=[np.asarray(d.logprob, dtype=np.float32) for d in drawn],
            entropy=[np.asarray(d.entropy, dtype=np.float32) for d in drawn],
            temperature=float(temperature),
            pieces=self.pieces.of([*(prompt.ids for prompt in prompts), *(d.ids for d in drawn)]),
        )

    def _note(self, why_plain: str | None) -> None:
        note = f"it is sampled without a cache, which is slower: {why_plain}"
        if why_plain and note not in self.notes:
            self.notes.append(note)

    def play(self, **settings: Any):
        """A chat box in a notebook: answers stream in, with and without the adapter side by side, tokens coloured.

        `settings`: those of `sample` (`max_new_tokens` 128, `n` 1 to 4), `system` (a system prompt) and `compare` (a
        list of "off": without the adapter, "start": as it was at the start); all can be changed in the box. The same
        seed gives the text that `sample` gives. Weights that a run holds now are kept for the box as they are now;
        `run.policy.play()` talks to the run's. Returns the view: `.messages`, `.rows`. Raises SettingError.
        """
        from workbench.playing import play

        return play(self, **settings)

    def text_of(self, ids: Sequence[int]) -> str:
        """A completion's ids as text, without the stop token and other special tokens."""
        ids = list(ids)
        if ids and ids[-1] in self.stop_ids:
            ids = ids[:-1]
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def check_lengths(self, prompts: Sequence[Any], max_new_tokens: int) -> None:
        """Raise DataError for the first tokenised prompt that leaves no room for so many tokens in the context."""
        text = trunk.base_of(self.model).config.get_text_config(decoder=True)
        limit = getattr(text, "max_position_embeddings", None)
        for i, prompt in enumerate(prompts):
            if not prompt.ids:
                raise DataError(f"Prompt {i} is empty; a model needs at least one token to go on from.")
            virtual = self.adapter.num_virtual_tokens if self.has_adapter and self.adapter.is_prompt_learning else 0
            if limit and len(prompt.ids) + virtual + max_new_tokens > limit:
                room = limit - len(prompt.ids) - virtual
                how = f"max_new_tokens={room} at most" if room > 0 else "a shorter prompt"
                raise DataError(
                    f"Prompt {i} is too long: its {len(prompt.ids)} tokens and max_new_tokens={max_new_tokens} exceed"
                    f" the {limit} tokens this model can see. Use {how}. It begins {prompt.text[:60]!r}."
                )

    # ------------------------------------------------------------------ saving

    @quiet()
    @worker.on_worker
    def save(self, folder: str | Path) -> Path:
        """Writes the adapter in PEFT's format (or the whole model, if it has none) and the tokenizer. Returns the path.

        The weights are those held now. A model card (README.md) says what the policy is; that of `run.save` says how
        it was trained, too. The folder appears whole or not at all; an earlier save is replaced, but a README.md that
        was changed by hand is kept. Raises SettingError if the folder holds anything else.
        """
        from workbench import export

        return export.save(self, folder)

    @worker.on_worker
    def push(self, repo_id: str, run: Any = None, **how: Any) -> str:
        """Uploads what `save` writes to the Hub, as the model repository `repo_id`; returns its URL.

        `run`: the run whose weights to upload and whose record the card tells; None: the weights held now. Further:
        `private=True` (of a new repository), `revision` (a branch), `commit_message`, `token`. What goes where, and how
        much, is said before. Raises SettingError without a login or the right to write, RunError when the Hub cannot be
        reached.
        """
        from workbench.sharing import push

        return push.saved(self if run is None else run, repo_id, **how)

    @quiet()
    @worker.on_worker
    def export(self, folder: str | Path, probes: Sequence[str] | None = None):
        """Writes one plain transformers model with the adapter merged in, then loads it and compares.

        The policy itself does not change by a bit. Returns `export.Agreement`: KL divergence and top-1 agreement
        between the policy and the written model on `probes` (prompts; a few plain ones by default) and what the policy
        says after them. Raises SettingError for adapters that cannot be merged, and as `save` does.
        """
        from workbench import export

        return export.export(self, folder, probes)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "role" in m for m in value)
