"""The history of a training, which is drawn as curves and stored with an edit."""

from dataclasses import field

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass

from imagic_lib.files import Finite, Whole


@dataclass(config=ConfigDict(strict=True, extra="ignore"))  # a newer version may have written more
class History:
    """The losses of a stage. The raw loss is mostly noise, because its timesteps are random. The probe always uses the
    same eight (noise, timestep) pairs, and so shows whether the stage is still learning."""

    loss: list[Finite] = field(default_factory=list)  # raw, of every step
    probe_step: list[Whole] = field(default_factory=list)
    probe_loss: list[Finite] = field(default_factory=list)
    learning_rate: list[Finite] = field(default_factory=list)  # of every step
    seconds: Finite = 0.0  # of all steps, over all sittings
    stopped: bool = False  # by the stop button, before all steps were done
    steps: Whole = 0  # as asked for

    @model_validator(mode="after")
    def check_probes(self):
        if len(self.probe_step) != len(self.probe_loss):
            raise ValueError("its probes have another number of steps")
        return self
