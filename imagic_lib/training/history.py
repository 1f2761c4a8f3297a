"""How a training went: what is drawn as curves, kept with an edit, and read back."""

from dataclasses import field

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from imagic_lib.files import Finite, Whole


@dataclass(config=ConfigDict(strict=True, extra="ignore"))  # a newer version may have written more
class History:
    """How a stage went. The raw loss is of random timesteps and so mostly noise. The probe always uses the same eight
    (noise, timestep) pairs and shows whether the stage still learns."""

    loss: list[Finite] = field(default_factory=list)  # raw, of every step
    probe_step: list[Whole] = field(default_factory=list)
    probe_loss: list[Finite] = field(default_factory=list)
    learning_rate: list[Finite] = field(default_factory=list)  # of every step
    seconds: Finite = 0.0  # of all steps, over all sittings
    stopped: bool = False  # by the stop button, before all steps were done
    steps: Whole = 0  # that were asked for

    @model_validator(mode="after")
    def check_probes(self):
        if len(self.probe_step) != len(self.probe_loss):
            raise ValueError("its probes have another number of steps")
        return self
