"""MedusaModel: what users hold: load a model with its heads, and generate with a candidate tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.distributed import DistributedConfig

from .acceptance.rules import Rule
from .book import TreeBook
from .decode import Generation, generate
from .errors import InputError, out_of_memory
from .heads.checkpoint import find_heads, load_heads
from .heads.config import HeadsConfig, checked, is_heads_repository, read_config
from .heads.heads import MedusaHeads
from .hub import CONFIG, Hub, Source
from .proof import prove
from .stops import stop_tokens
from .tree import CandidateTree
from .tree_model import TreeModel
from .treefile import TreeFile

LONGEST = 800  # characters of another library's error
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNLOADABLE = (  # what transformers raises at a config, weights or a tokenizer that it cannot make sense of
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, ImportError, StrictDataclassError,
)  # fmt: skip


def pick_device(name: str | None) -> torch.device:
    """The device asked for, or CUDA where there is one, or the CPU.

    Raises:
        InputError: the device does not exist here.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {name}: not usable here ({str(error).splitlines()[0]}); leave it out to take what is there"
        ) from None
    return device


def load_base(source: Source, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The causal LM at ``source`` and its tokenizer, by transformers.

    Args:
        kwargs: for ``AutoModelForCausalLM.from_pretrained``; ``trust_remote_code`` counts for config and tokenizer, too.

    Raises:
        InputError: it is none, or cannot be loaded.
    """
    where, options = source.where, source.options()
    theirs = {**options, "trust_remote_code": kwargs.get("trust_remote_code", False)}
    try:
        config = AutoConfig.from_pretrained(where, **theirs)
        # An adapter beside the model is looked for by options of its own.
        base = AutoModelForCausalLM.from_pretrained(
            where, config=config, **{"adapter_kwargs": dict(options), **options, **kwargs}
        )
        return base, AutoTokenizer.from_pretrained(where, **theirs)
    except UNLOADABLE as error:
        raise InputError(
            f"{where}: cannot be loaded as a causal LM with its tokenizer: {str(error)[:LONGEST]}"
        ) from None


class MedusaModel(TreeModel):
    """A causal LM with tree attention and the heads that guess ahead of it; see :class:`TreeModel` for its arguments.

    Raises:
        InputError: the heads do not fit, or the model is not run as transformers runs it (:mod:`medusa_runtime.proof`).
    """

    def __init__(
        self,
        base: PreTrainedModel,
        heads: MedusaHeads | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        name: str = "model",
        heads_name: str = "heads",
        commit: str | None = None,
        heads_commit: str | None = None,
    ) -> None:
        prove(base, name)
        super().__init__(base, heads, tokenizer, name, heads_name, commit, heads_commit)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        heads: str | Path | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | None = None,
        trust_remote_code: bool = False,
        require_heads: bool | None = True,
        revision: str | None = None,
        heads_revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Load a model and its heads.

        Args:
            model: folder or Hub id of a causal LM, of a full checkpoint that carries heads, or of a heads
                repository, whose config names the base.
            heads: folder or Hub id of the heads; by default looked for with the model.
            dtype: "float32", "bfloat16", "float16" or a torch dtype; by default the checkpoint's own.
            device: e.g. "cpu", "cuda:0"; by default CUDA where there is one.
            require_heads: False loads a model without heads, unless ``heads`` names some; None loads those that lie with the model,
                if there are any.
            revision: branch, tag or commit of ``model``'s repository; the base that a heads repository names is taken from its
                main branch, so name it by ``model`` to choose.
            heads_revision: branch, tag or commit of ``heads``' repository.
            token, cache_dir, force_download, local_files_only: how the Hub is asked for both, see :class:`medusa_runtime.hub.Hub`.
            kwargs: passed on to ``AutoModelForCausalLM.from_pretrained``, such as ``device_map``; ``tp_plan`` as what it calls so now.

        Raises:
            InputError: nothing there, unreadable, or model and heads do not fit.
        """
        if heads is None and heads_revision is not None:
            raise InputError(
                f"--heads-revision {heads_revision}: is of the repository that --heads names; without it heads are looked for with the model, at its --revision"
            )
        hub = Hub(revision, token, cache_dir, force_download, local_files_only)
        source = Source.of(model, hub)
        heads_source = source if heads is None else Source.of(heads, replace(hub, revision=heads_revision))
        config = read_config(source)
        if is_heads_repository(config):
            named = checked(HeadsConfig, config, f"{source.where}: {CONFIG}").base_model_name_or_path
            source = Source.of(named, replace(hub, revision=None))
        loaded = None
        if require_heads or heads is not None:
            loaded = load_heads(heads_source)
        elif require_heads is None:
            alone = is_heads_repository(config)  # whose heads are what it is there for
            loaded = load_heads(heads_source) if alone else find_heads(heads_source)
        target = pick_device(device)
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        torch_dtype = DTYPES[dtype] if isinstance(dtype, str) else dtype
        if (plan := kwargs.pop("tp_plan", None)) is not None:  # by its newer name
            kwargs["distributed_config"] = DistributedConfig(tp_plan=plan)
        base, tokenizer = load_base(source, dtype=torch_dtype or "auto", trust_remote_code=trust_remote_code, **kwargs)
        if getattr(base, "hf_device_map", None) is None and not kwargs.get("distributed_config"):
            size = sum(w.numel() * w.element_size() for w in base.parameters()) / 2**30
            with out_of_memory(f"the weights of {source.where} take {size:.2f} GiB", target):
                base = base.to(target)
        with out_of_memory(f"the heads of {heads_source.where}", target):
            commit = None if loaded is None else heads_source.commit
            made = cls(base, loaded, tokenizer, source.where, heads_source.where, source.commit, commit)
        stop_tokens(made, None)  # what is wrong with them is told before any work
        return made

    def generate(
        self,
        input_ids: Tensor | Sequence[Sequence[int]],
        tree: CandidateTree | TreeBook | TreeFile | None = None,
        max_new_tokens: int = 128,
        eos_token_id: int | Sequence[int] | None = None,
        attention_mask: Tensor | Sequence[Sequence[int]] | None = None,
        rule: Rule | None = None,
        streams: Sequence[int] | None = None,
    ) -> Generation:
        """Decode with a candidate tree (None or empty: plainly). Greedily the text is that of plain greedy decoding, and when
        sampling that of plain sampling with the same seed; typical acceptance changes it (see :mod:`medusa_runtime.acceptance.rules`).

        Args:
            input_ids: (B, S) token ids, or B lists of them of any lengths.
            tree: a tree, a book of several, or a whole tree.json (:func:`read_tree`), of which the point for this batch and context is taken.
            attention_mask: of the shape of ``input_ids``, 0 where that is padding, on either side.
            eos_token_id: ends a sequence; by default the model's own. Pass an empty list for none.
            rule, streams: how tokens are accepted, and what is drawn for each sequence; see :func:`medusa_runtime.decode.stream`.

        Raises:
            InputError: a mask of another shape, and what :func:`medusa_runtime.decode.stream` raises.
        """
        rows = _rows(input_ids)
        if attention_mask is not None:
            rows = _unpadded(rows, _rows(attention_mask))
        empty = CandidateTree()
        return generate(self, rows, empty if tree is None else tree, max_new_tokens, eos_token_id, rule, streams)


def _rows(ids: Tensor | Sequence[Sequence[int]]) -> list[list[int]]:
    return ids.tolist() if isinstance(ids, Tensor) else [list(map(int, row)) for row in ids]


def _unpadded(rows: list[list[int]], mask: list[list[int]]) -> list[list[int]]:
    """The tokens where the mask is not 0."""
    if list(map(len, rows)) != list(map(len, mask)):
        raise InputError(
            f"attention_mask has rows of {list(map(len, mask))} entries, input_ids of {list(map(len, rows))}; give one for each token"
        )
    return [[t for t, m in zip(row, kept, strict=True) if m] for row, kept in zip(rows, mask, strict=True)]
