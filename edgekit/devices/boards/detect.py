"""Which adapter a target's board has."""

from __future__ import annotations

import time

from edgekit.devices.boards.base import Board, Clock, Reader, Runner
from edgekit.devices.boards.jetson import Jetson
from edgekit.devices.boards.linux_arm import LinuxArm
from edgekit.devices.boards.raspberry_pi import RaspberryPi
from edgekit.targets import Target


def detect(target: Target, read: Reader, run: Runner, clock: Clock = time.monotonic) -> Board:
    """The adapter that the target file asks for by its providers (power, thermal, firmware of probe).

    What the adapter then finds may be less: a sensor that does not answer is None with a reason in every sample.
    """
    if "vcgencmd" in (target.thermal.provider, target.probe.firmware) or target.power.provider == "pmic_read_adc":
        return RaspberryPi(target, read, run, clock)
    if target.probe.firmware == "l4t" or target.power.provider == "ina3221":
        return Jetson(target, read, run, clock)
    return LinuxArm(target, read, clock)
