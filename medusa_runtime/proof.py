"""Proof: whether passes with our cache and tree attention give what transformers' own forward gives.

A model's config does not say what its class does: some keep a state beside the KV cache, put their windows only into the mask
that we leave out, or share caches between layers. So each class is run before it is believed: a few random tokens through
transformers' own forward, and through our passes, over two prompts of unequal length, a step without a tree, and trees behind
one another of which two different paths are kept.

- On a miniature of the architecture (:mod:`medusa_runtime.miniature`): in float32 rounding is a millionth of what any fault
  makes, and texts go across windows, on both sides of a RoPE switch, and to the end of the context. Takes some 0.1 s whatever
  the model's size, as crossing a window of 4,096 tokens on the model itself would take minutes on a CPU.
- On the model's own weights, with short texts. That is for what a miniature has not: weights that are quantised, split or
  placed by a device map, and configs of which no miniature can be built (their windows are then not crossed). Here rounding
  counts, and the bar is coarse.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedModel

from .attention import AttentionContext
from .buffers import TreeBuffers
from .errors import InputError, out_of_memory
from .miniature import POSITIONS, SWITCH, miniature
from .tree import CandidateTree
from .tree_model import TreeModel, check_architecture

ROUNDING = 1e-3  # of the logits' spread, in float32 on a miniature: good classes stay below 2e-5, faults make over 1e-1
COARSE = 0.4  # on the model's own weights, of half of a pass's tokens: in bfloat16 an expert more or less may move single ones
AFFORDABLE = 1e11  # tokens x weights on a CPU: some seconds
# What a class raises where a size, or our cache, is not what it counts on.
FAULTS = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError,
)  # fmt: skip
MEND = "decode it with transformers, or take a model of a class that docs/runtime.md lists as seen right"

PLAIN, TREE = CandidateTree(), CandidateTree(((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 0, 0)))
Rounds = tuple[tuple[CandidateTree, tuple[int, int]], ...]  # trees, and the node that each sequence goes on from
LONG: Rounds = ((PLAIN, (0, 0)), (TREE, (5, 1)), (TREE, (2, 6)), (PLAIN, (0, 0)), (TREE, (0, 0)))
SHORT: Rounds = ((TREE, (5, 1)), (TREE, (0, 0)))
# Prompts. The first texts end before the switch, having crossed the window; the others begin behind it, and the last tree's
# deepest node stands at the last position.
BEFORE, BRIEF = (3, 9), (5, 9)
BEHIND = (SWITCH + 3, POSITIONS - 12)


@dataclass(frozen=True)
class Script:
    """Random tokens for some rounds: what our passes are given, and the plain texts that must come to the same.

    prompts: two lists of token ids. drafted: a round's tokens (2, M). texts: plain texts. places: for each round, each
    (sequence, node): which text holds it, and where.
    """

    prompts: list[list[int]]
    drafted: list[Tensor] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    places: list[dict[tuple[int, int], tuple[int, int]]] = field(default_factory=list)

    @classmethod
    def write(cls, vocab: int, lengths: tuple[int, int], rounds: Rounds) -> Script:
        generator = torch.Generator().manual_seed(0)
        script = cls([_random(vocab, (n,), generator).tolist() for n in lengths])
        behind = [list(p) for p in script.prompts]
        for tree, ends in rounds:
            tokens = _random(vocab, (2, tree.nodes + 1), generator)
            places: dict[tuple[int, int], tuple[int, int]] = {}
            for b, node in ((b, n) for b in range(2) for n in range(tree.nodes, -1, -1) if (b, n) not in places):
                path = tree.retrieval[node][: tree.depths[node] + 1].tolist()
                for depth, n in enumerate(path):
                    places.setdefault((b, n), (len(script.texts), len(behind[b]) + depth))
                script.texts.append([*behind[b], *tokens[b, path].tolist()])
            for b, end in enumerate(ends):
                behind[b] += tokens[b, tree.retrieval[end][: tree.depths[end] + 1]].tolist()
            script.drafted.append(tokens)
            script.places.append(places)
        return script


def _random(vocab: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Tokens, but for the first and last few, which are often special."""
    return torch.randint(min(4, vocab - 2), vocab - 1, shape, generator=generator)


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows], device=device)


@dataclass(frozen=True)
class Difference:
    """How far a pass's logits for one sequence's tokens are from transformers'.

    what: the pass. sequence: 0, the shorter, or 1. positions: of its tokens. errors: root mean square over the vocabulary, in
    standard deviations of transformers' logits.
    """

    what: str
    sequence: int
    positions: list[int]
    errors: Tensor

    def first(self, bar: float) -> int | None:
        """The first position whose error is not within the bar."""
        return next(
            (p for p, e in sorted(zip(self.positions, self.errors.tolist(), strict=True)) if not e <= bar), None
        )


@contextmanager
def own_attention(base: PreTrainedModel) -> Iterator[None]:
    """Whatever attention is set inside, the model and each of its parts get back what they had."""
    configs = list({id(m.config): m.config for m in base.modules() if isinstance(m, PreTrainedModel)}.values())
    before = [config._attn_implementation for config in configs]
    try:
        yield
    finally:
        for config, was in zip(configs, before, strict=True):  # the whole model's first: setting it sets its parts'
            config._attn_implementation = was


@torch.no_grad()
def expected(base: PreTrainedModel, script: Script) -> Tensor:
    """(texts, longest, V) float32 on the CPU: transformers' own logits, by its own attention and masks. Texts are padded on the
    right, where no token sees the padding."""
    with own_attention(base):
        base.set_attn_implementation("eager")  # as the class is written
        return base(input_ids=_padded(script.texts, base.device), use_cache=False).logits.float().cpu()


@torch.no_grad()
def differences(model: TreeModel, script: Script, rounds: Rounds, want: Tensor) -> Iterator[Difference]:
    """Our passes over the script, against what transformers makes of its texts."""
    device, spread = model.device, want.std()
    lengths = [len(p) for p in script.prompts]
    cache = model.new_cache(2, want.shape[1] + TREE.nodes + 1)
    slots = cache.slots

    def compare(what: str, got: Tensor, places: dict[tuple[int, int], tuple[int, int]]) -> Iterator[Difference]:
        for b in range(2):
            nodes, at = zip(*((n, place) for (owner, n), place in places.items() if owner == b), strict=True)
            texts, positions = zip(*at, strict=True)
            error = got[b, list(nodes)] - want[list(texts), list(positions)]
            yield Difference(what, b, list(positions), error.square().mean(dim=-1).sqrt() / spread)

    got = model(_padded(script.prompts, device), cache, AttentionContext(slots))[1].float().cpu()
    text = {b: place[0] for (b, _), place in script.places[0].items()}
    yield from compare(
        "a pass over two prompts", got, {(b, i): (text[b], i) for b in range(2) for i in range(lengths[b])}
    )
    slots.set_lengths(lengths)
    for (tree, ends), tokens, places in zip(rounds, script.drafted, script.places, strict=True):
        buffers = TreeBuffers.of(tree, device)
        got = model(tokens.to(device), cache, AttentionContext(slots, buffers.mask))[1].float().cpu()
        yield from compare("a pass over a tree" if tree.nodes else "a step without a tree", got, places)
        best = torch.tensor(ends, device=device)
        cache.keep(buffers.retrieval[0][best], buffers.depths[0][best])
        lengths = [n + 1 + int(tree.depths[end]) for n, end in zip(lengths, ends, strict=True)]
        slots.set_lengths(lengths)


_PROVEN: dict[tuple[type, str], bool] = {}  # classes with their configs, and whether a miniature could be built


def prove(base: PreTrainedModel, name: str) -> None:
    """InputError where a model is not run as transformers runs it, saying what differs. The model is left as it was."""
    check_architecture(base, name)
    key = type(base), str(base.config.to_dict())
    if key not in _PROVEN:
        _PROVEN[key] = _prove_miniature(base, name)
    script = Script.write(base.config.get_text_config().vocab_size, BRIEF, SHORT)
    weights = list(base.parameters())
    fetched = any(w.device.type == "meta" for w in weights)  # offloaded: each pass brings all of them in
    work = sum(map(len, script.texts)) * sum(w.numel() for w in weights)
    if not _PROVEN[key] or not (fetched or (base.device.type == "cpu" and work > AFFORDABLE)):
        _prove_weights(base, name, script)


def _prove_miniature(base: PreTrainedModel, name: str) -> bool:
    """False where no miniature can be built, or transformers' own forward of it does not run."""
    try:
        small = miniature(base)
        vocab = small.config.get_text_config().vocab_size
        scripts = [Script.write(vocab, lengths, LONG) for lengths in (BEFORE, BEHIND)]
        wanted = [expected(small, script) for script in scripts]
    except FAULTS:
        return False
    if not all(want.isfinite().all() for want in wanted):
        return False
    with _running(small, name):
        model = TreeModel(small, name=name)
        for script, want in zip(scripts, wanted, strict=True):
            for found in differences(model, script, LONG, want):
                if (at := found.first(ROUNDING)) is not None:
                    raise _refusal(small, name, found, at, " of a small copy of it")
    return True


def _prove_weights(base: PreTrainedModel, name: str, script: Script) -> None:
    try:
        with out_of_memory("a first pass over a few tokens", base.device):
            want = expected(base, script)
    except FAULTS as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{name}: transformers' own forward of {type(base).__name__} fails ({type(error).__name__}: {error}); see to it "
            "that transformers generates with this model first"
        ) from error
    with _running(base, name), out_of_memory("a first pass over a few tokens", base.device), _lent(base, name) as model:
        for found in differences(model, script, SHORT, want):
            if found.errors.median() > COARSE:  # false where logits overflow, which decoding says itself
                raise _refusal(base, name, found, found.positions[0], "")


@contextmanager
def _lent(base: PreTrainedModel, name: str) -> Iterator[TreeModel]:
    """The model with tree attention, given back with its own."""
    training, learns = base.training, [w.requires_grad for w in base.parameters()]
    with own_attention(base):
        model = TreeModel(base, name=name)
        try:
            yield model
        finally:
            model.catching.remove()
            base.train(training)
            for weight, wanted in zip(base.parameters(), learns, strict=True):
                weight.requires_grad_(wanted)


@contextmanager
def _running(base: PreTrainedModel, name: str) -> Iterator[None]:
    """Errors of a class that our cache or attention cannot serve, by its name."""
    try:
        yield
    except InputError as error:
        raise InputError(
            str(error) if str(error).startswith(name) else f"{name}: {type(base).__name__}: {error}"
        ) from None
    except FAULTS as error:
        raise InputError(
            f"{name}: {type(base).__name__} does not run with tree attention and its cache ({type(error).__name__}: {error}); {MEND}"
        ) from error


def _refusal(base: PreTrainedModel, name: str, found: Difference, at: int, whose: str) -> InputError:
    window = getattr(base.config.get_text_config(), "sliding_window", None)
    behind = f", behind the sliding_window of {window}" if window and at >= window else ""
    which = ("shorter", "longer")[found.sequence]
    return InputError(
        f"{name}: {type(base).__name__} is not run as transformers runs it: in {found.what}, logits{whose} differ by "
        f"{float(found.errors.max()):.2g} standard deviations from token {at} of the {which} sequence on{behind}; {MEND}"
    )
