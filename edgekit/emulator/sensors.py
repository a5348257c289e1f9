"""A board's sensors that a test sets: the firmware's `vcgencmd`, the thermal zone and INA3221 power monitors.

What is written looks as the real thing prints it; the numbers are whatever the test says.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.errors import OptionError
from edgekit.targets import Target

VCGENCMD = "run/vcgencmd"
"""Folder of what `vcgencmd` answers: one file a question."""
THERMAL = "sys/class/thermal/thermal_zone0"
INA3221 = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
SCRIPT = f"""#!/bin/sh
# Stands in for the firmware's own tool: answers what a test has set.
question="$1${{2:+.$2}}"
case "$question" in
    "" | *[!A-Za-z0-9_.]*) ;;
    *)
        if [ -f "/{VCGENCMD}/$question" ]; then
            while IFS= read -r line; do printf '%s\\n' "$line"; done < "/{VCGENCMD}/$question"
            exit 0
        fi ;;
esac
echo 'error=1 error_msg="Command not registered"'
exit 255
"""
_ARM_CLOCK = {"pmic_read_adc": 0}
"""Number of the ARM clock in the answer: 0 on a Raspberry Pi 5 (the one with a PMIC to ask), 48 on older ones."""
_PMIC = (
    ("3V7_WL_SW", 0, 8, 3.70), ("3V3_SYS", 1, 9, 3.31), ("1V8_SYS", 2, 10, 1.80), ("DDR_VDD2", 3, 11, 1.10),
    ("DDR_VDDQ", 4, 12, 0.60), ("1V1_SYS", 5, 13, 1.10), ("0V8_SW", 6, 14, 0.80), ("VDD_CORE", 7, 15, 0.80),
    ("3V3_DAC", 17, 20, 3.31), ("3V3_ADC", 18, 21, 3.31), ("0V8_AON", 16, 19, 0.80), ("HDMI", 22, 23, 5.10),
)  # fmt: skip
"""Rail, channel of its current, channel of its voltage, volts: as `vcgencmd pmic_read_adc` lists them on a Pi 5."""
_SHARE = {"VDD_CORE": 0.6, "DDR_VDD2": 0.2}
"""Of the power that is set; the other rails share the rest."""
_HEALTHY, _LOW = 5.1, 4.6
"""Volts of the supply: as it should be, and below the 4.63 V where the firmware says under-voltage."""


class Throttled(enum.IntFlag):
    """The lower bits of `vcgencmd get_throttled`; 16 bits up stands what has happened since the board started."""

    NONE = 0
    UNDER_VOLTAGE = 1
    CAPPED = 2
    THROTTLED = 4
    SOFT_LIMIT = 8


@dataclass(frozen=True)
class Readings:
    """What the sensors say."""

    temperature_c: float = 45.0
    clock_mhz: float = 0.0
    """Of the ARM cores; 0: the highest that the target names."""
    watts: float = 3.0
    """Sum over the rails that have voltage and current."""
    now: Throttled = Throttled.NONE
    earlier: Throttled = Throttled.NONE
    """Since the board started; what is in `now` is added to it."""


STATES: Mapping[str, Readings] = {
    "cool": Readings(),
    "hot": Readings(temperature_c=82.5, now=Throttled.SOFT_LIMIT, watts=7.0),
    "throttled": Readings(
        temperature_c=85.2, clock_mhz=1500.0, now=Throttled.THROTTLED | Throttled.CAPPED, watts=5.0
    ),
    "throttled-earlier": Readings(earlier=Throttled.THROTTLED | Throttled.CAPPED),
    "under-voltage": Readings(clock_mhz=1000.0, now=Throttled.UNDER_VOLTAGE | Throttled.CAPPED, watts=5.0),
}  # fmt: skip
"""What a test can name."""


class Sensors:
    """The sensors of one emulated board, to be set while it runs.

    Args:
        target: which sensors there are.
        write: puts files (path below "/" → text) into the board.
    """

    def __init__(self, target: Target, write: Callable[[Mapping[str, str]], None]) -> None:
        self._target, self._write = target, write
        self.readings = Readings()

    def set(self, state: str | Readings) -> None:
        """Show a state of :data:`STATES` or any readings. What throttled stays in the upper bits until :meth:`restart`.

        Raises:
            OptionError: no such state.
        """
        if isinstance(state, str):
            if state not in STATES:
                raise OptionError(f"the sensors know no state {state!a}", expected="one of " + ", ".join(STATES))
            state = STATES[state]
        self.readings = replace(state, earlier=self.readings.earlier | state.earlier | state.now)
        self._write(files(self._target, self.readings))

    def restart(self) -> None:
        """As after switching the board off and on: cool, and nothing has happened yet."""
        self.readings = Readings()
        self.set("cool")


def files(target: Target, readings: Readings) -> dict[str, str]:
    """Path below "/" → text, of every sensor the target has. Temperatures in the file are in m°C, currents in mA."""
    made = {f"{THERMAL}/temp": f"{round(readings.temperature_c * 1000)}\n", f"{THERMAL}/type": "cpu-thermal\n"}
    if "vcgencmd" in (target.thermal.provider, target.probe.firmware):
        made |= {f"{VCGENCMD}/{question}": text for question, text in _vcgencmd(target, readings).items()}
    if target.power.provider == "ina3221":
        made |= {f"{INA3221}/{name}": text for name, text in _ina3221(target.power.rails, readings.watts).items()}
    return made


def _vcgencmd(target: Target, readings: Readings) -> dict[str, str]:
    bits = readings.now | (readings.earlier | readings.now) << 16
    clock = _ARM_CLOCK.get(target.power.provider, 48)
    answers = {
        "get_throttled": f"throttled={bits:#x}\n",
        "measure_temp": f"temp={readings.temperature_c:.1f}'C\n",
        "measure_clock.arm": f"frequency({clock})={round(_mhz(target, readings) * 1e6)}\n",
        "bootloader_version": "2025/01/01 00:00:00\nversion emulated (release)\ntimestamp 1735689600\n",
    }
    if target.power.provider == "pmic_read_adc":
        answers["pmic_read_adc"] = _pmic(readings)
    return answers


def _mhz(target: Target, readings: Readings) -> float:
    return readings.clock_mhz or max((cluster.max_mhz for cluster in target.soc.clusters), default=0)


def _pmic(readings: Readings) -> str:
    rest = (1 - sum(_SHARE.values())) / (len(_PMIC) - len(_SHARE))
    supply = _LOW if Throttled.UNDER_VOLTAGE in readings.now else _HEALTHY
    currents, voltages = [], []
    for rail, current, voltage, volts in _PMIC:
        amperes = readings.watts * _SHARE.get(rail, rest) / volts
        currents.append((f"{rail}_A", f"current({current})={amperes:.8f}A"))
        voltages.append((f"{rail}_V", f"volt({voltage})={volts:.8f}V"))
    others = [("EXT5V_V", f"volt(24)={supply:.8f}V"), ("BATT_V", "volt(25)=0.00000000V")]
    return "".join(f"{name:>16} {text}\n" for name, text in [*currents, *voltages, *others])


def _ina3221(rails: Sequence[str], watts: float) -> dict[str, str]:
    """Three channels of one chip, as the kernel's driver shows them: mV and mA."""
    whole = dict.fromkeys(rails, 1.0) | {"VDD_CPU_GPU_CV": 0.5, "VDD_SOC": 0.2}
    parts = {"VDD_GPU_SOC": 0.5, "VDD_CPU_CV": 0.3, "VIN_SYS_5V0": 0.2}
    volts, made = 5.0, {"name": "ina3221\n"}
    for channel, (label, share) in enumerate((whole if rails else parts).items(), 1):
        made[f"in{channel}_label"] = f"{label}\n"
        made[f"in{channel}_input"] = f"{round(volts * 1000)}\n"
        made[f"curr{channel}_input"] = f"{round(watts * share / volts * 1000)}\n"
    return made
