"""Eight classical blind metrics, each a function of pixels on 0..255, and the one table that lists them.

    from saqm.metrics.niqe import niqe
    value = niqe(pixels, load_parameters("niqe-natural"), mask=mask, snap=True)

`docs/metrics.md` has a card for each. A metric keeps its own scale; METRICS says which direction is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from numpy.typing import NDArray

from saqm.metrics import biqaa, bliinds, brisque, marziliano, niqe, niqe_k, radial_index, sure_noise
from saqm.metrics._nss import flat_fraction as flat_fraction
from saqm.metrics._pixels import luminance as luminance


@dataclass(frozen=True)
class Metric:
    """One line of the table.

    function: (pixels, mask=) or, where `parameters` names a kind, (pixels, parameters, mask=); pixels on 0..255.
    features: the numbers the value is made of, (pixels, mask=), where there are such. options: what `function` is given
    beside that, always. takes_snap: whether `function` knows snap=, which makes flat areas independent of rounding.
    exact: "exact" follows the authors' released code to its numbers, "reconstruction" is made after a description.
    default: the shipped parameters that are meant where none are named.
    """

    name: str  # on the command line and in the records
    title: str
    function: Callable[..., float]
    features: Callable[..., NDArray[Any]] | None
    higher_is_better: bool
    range: str
    source: str
    exact: Literal["exact", "reconstruction"]
    smallest: str
    parameters: Literal["niqe", "brisque", "bliinds"] | None = None
    default: str | None = None
    takes_snap: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    remark: str = ""

    @property
    def direction(self) -> str:
        """In words, as the records have it."""
        return "higher is better" if self.higher_is_better else "lower is better"


METRICS: Mapping[str, Metric] = {
    "brisque": Metric(
        name="brisque",
        title="BRISQUE",
        function=brisque.brisque,
        features=brisque.brisque_features,
        higher_is_better=False,
        range="nominally 0 to 100, never clamped",
        source="Mittal, Moorthy, Bovik, IEEE TIP 21(12), 2012",
        exact="exact",
        smallest="16 pixels a side",
        parameters="brisque",
        default="brisque-natural",
        takes_snap=True,
    ),
    "niqe": Metric(
        name="niqe",
        title="NIQE",
        function=niqe.niqe,
        features=niqe.niqe_features,
        higher_is_better=False,
        range="0 and up, no upper bound",
        source="Mittal, Soundararajan, Bovik, IEEE SPL 20(3), 2013",
        exact="exact",
        smallest="two blocks of 96x96 pixels",
        parameters="niqe",
        default="niqe-natural",
        takes_snap=True,
    ),
    "niqe-k": Metric(
        name="niqe-k",
        title="NIQE-K",
        function=niqe_k.niqe_k,
        features=niqe.niqe_features,
        higher_is_better=False,
        range="0 and up, no upper bound",
        source="Outtas et al., ISIVC 2016, as quoted by others",
        exact="reconstruction",
        smallest="two blocks of 96x96 pixels",
        parameters="niqe",
        default="niqe-natural",
        takes_snap=True,
        options={"eps": 1e-8},
    ),
    "bliinds": Metric(
        name="bliinds",
        title="BLIINDS-II",
        function=bliinds.bliinds,
        features=bliinds.bliinds_features,
        higher_is_better=False,
        range="0 to 99 in steps of 0.5",
        source="Saad, Bovik, Charrier, IEEE TIP 21(8), 2012",
        exact="exact",
        smallest="16 pixels a side",
        parameters="bliinds",
        default="bliinds-natural",
        options={"continuous": False},
    ),
    "biqaa": Metric(
        name="biqaa",
        title="BIQAA",
        function=biqaa.biqaa,
        features=biqaa.biqaa_entropies,
        higher_is_better=True,
        range="0 and up; photographs 0.0002 to 0.02",
        source="Gabarda, Cristóbal, JOSA A 24(12), B42-B51, 2007",
        exact="exact",
        smallest="16 pixels a side",
    ),
    "sure-noise": Metric(
        name="sure-noise",
        title="Noise (SURE non-local means)",
        function=sure_noise.sure_noise,
        features=None,
        higher_is_better=False,
        range="0 and up, grey levels of 255",
        source="Van De Ville, Kocher, IEEE SPL 16(11), 2009",
        exact="reconstruction",
        smallest="16 pixels a side",
        options={"crop": 192},
    ),
    "marziliano": Metric(
        name="marziliano",
        title="Marziliano blur",
        function=marziliano.marziliano,
        features=None,
        higher_is_better=False,
        range="1 and up, pixels; falls with noise",
        source="Marziliano, Dufaux, Winkler, Ebrahimi, ICIP 2002",
        exact="exact",
        smallest="16 pixels a side",
        options={"rule": "strict"},
        remark="edges and widths are exact, threshold and plateau rule a choice",
    ),
    "radial-index": Metric(
        name="radial-index",
        title="RadialIndex",
        function=radial_index.radial_index,
        features=None,
        higher_is_better=True,
        range="log10, photographs -2.9 to -1.3; noise raises it",
        source="Chetouani, Beghdadi, Deriche, ISSPIT 2009",
        exact="reconstruction",
        smallest="16 pixels a side",
        options={"relative": False},
    ),
}
