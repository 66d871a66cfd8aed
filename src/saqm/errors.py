"""The errors saqm raises: each says what came, what was wanted, and the way out."""

from __future__ import annotations


class SaqmError(Exception):
    """Root of every error that saqm raises on purpose. The command line prints it and exits with 2."""


class ImageError(SaqmError):
    """A file is not an image that can be read: missing, broken, unsupported, or a frame or axis has to be chosen."""


class NotScorable(SaqmError):
    """A readable image has nothing to judge: constant, all masked, too small. The message is the reason."""


class ManifestError(SaqmError):
    """A manifest is wrong; the message lists every bad row, not the first."""


class ModelFileError(SaqmError):
    """A model file is refused: wrong hash, newer format, missing field, foreign file."""


class UndefinedScore(SaqmError):
    """A statistic has no value for this input (a correlation with a constant, say)."""


class TrainingError(SaqmError):
    """A training run cannot start or was stopped: bad recipe, NaN loss, exploding features, a foreign checkpoint."""


class OutputError(SaqmError):
    """A result cannot be written; what stood there before is intact."""


class MissingExtra(SaqmError):
    """An optional package is needed. `MissingExtra("torch", "train", "training")` names the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'saqm[{extra}]'")
        self.package, self.extra = package, extra
