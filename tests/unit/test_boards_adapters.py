"""Boards as adapters: what facts, samples and disturbances they give of recorded and of broken machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace
from test_boards_recorded import BOOTLOADER, CLOCKS_ORIN, PMIC_BUSY, TEGRASTATS, UNKNOWN_COMMAND, VERSION

from edgekit.devices.boards import disturb, ina3221, linux, processor
from edgekit.devices.boards.base import Board, Sample
from edgekit.devices.boards.detect import detect
from edgekit.devices.boards.jetson import Jetson
from edgekit.devices.boards.linux_arm import LinuxArm
from edgekit.devices.boards.raspberry_pi import RaspberryPi
from edgekit.emulator.sensors import VCGENCMD, Readings, Sensors, Throttled
from edgekit.targets import load


@dataclass
class Machine:
    """A board as files and answers."""

    files: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def read(self, path: str) -> str | None:
        self.asked.append(path)
        return self.files.get(path)

    def run(self, command: Sequence[str]) -> str | None:
        line = " ".join(command)
        self.asked.append(line)
        if command[:2] == ["ls", "-1"]:
            folder = command[2] + "/"
            names = {path.removeprefix(folder).split("/")[0] for path in self.files if path.startswith(folder)}
            return "".join(f"{name}\n" for name in sorted(names)) if names else None
        return self.answers.get(line)

    def board(self, name: str) -> Board:
        return detect(load(name), self.read, self.run)


def pi(bits: str = "0x0", pmic: str | None = PMIC_BUSY) -> Machine:
    answers = {
        "vcgencmd get_throttled": f"throttled={bits}\n",
        "vcgencmd measure_temp": "temp=62.3'C\n",
        "vcgencmd measure_clock arm": "frequency(0)=2400033024\n",
        "vcgencmd bootloader_version": BOOTLOADER,
        "vcgencmd version": VERSION,
    }
    files = {
        "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
        "/sys/devices/system/cpu/present": "0-3\n",
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "ondemand\n",
    }
    return Machine(files, answers | ({"vcgencmd pmic_read_adc": pmic} if pmic else {}))


HWMON = "/sys/class/hwmon/hwmon{}"


def orin(rails: Sequence[tuple[str, int, int]], chip: int = 1) -> dict[str, str]:
    """An INA3221 as a hwmon of the kernel: label, mV, mA."""
    folder = HWMON.format(chip)
    files = {f"{folder}/name": "ina3221\n"}
    for index, (label, mv, ma) in enumerate(rails, 1):
        files |= {f"{folder}/in{index}_label": f"{label}\n", f"{folder}/in{index}_input": f"{mv}\n"}
        files[f"{folder}/curr{index}_input"] = f"{ma}\n"
    return files


ORIN_NANO = [("VDD_IN", 5008, 1136), ("VDD_CPU_GPU_CV", 5008, 160), ("VDD_SOC", 5008, 288)]
AGX = [("VDD_GPU_SOC", 19864, 180), ("VDD_CPU_CV", 19864, 60), ("VIN_SYS_5V0", 4968, 953)]


def jetson(files: dict[str, str]) -> Machine:
    common = {
        f"{HWMON.format(0)}/name": "nvme\n",
        f"{HWMON.format(3)}/name": "soctherm_oc\n",
        f"{HWMON.format(3)}/oc1_event_cnt": "0\n",
        f"{HWMON.format(3)}/oc3_event_cnt": "7\n",
        "/proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "/etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "/sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "/sys/class/thermal/thermal_zone0/temp": "49468\n",
        "/sys/class/thermal/thermal_zone1/type": "gpu-thermal\n",  # switched off: no temperature
        "/sys/class/thermal/thermal_zone2/type": "tj-thermal\n",
        "/sys/class/thermal/thermal_zone2/temp": "50531\n",
        "/sys/devices/system/cpu/present": "0-5\n",
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "schedutil\n",
        "/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "729600\n",
        "/sys/devices/system/cpu/cpufreq/policy4/scaling_governor": "schedutil\n",
        "/sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq": "1344000\n",
    }
    answers = {"nvpmodel -q": "NV Power Mode: 25W\n1\n", "jetson_clocks --show": CLOCKS_ORIN}
    return Machine(common | files, answers)


# --- which adapter ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("rpi5", RaspberryPi), ("rpi4", RaspberryPi), ("rpi-zero2w", RaspberryPi), ("jetson-orin-nano", Jetson),
        ("jetson-agx-orin", Jetson), ("jetson-thor", Jetson), ("rk3588", LinuxArm), ("arm64-generic", LinuxArm),
        ("host", LinuxArm),
    ],
)  # fmt: skip
def test_the_target_file_decides_which_adapter(name: str, kind: type) -> None:
    assert isinstance(Machine().board(name), kind)


@pytest.mark.parametrize("name", ["rpi5", "rpi4", "jetson-orin-nano", "jetson-thor", "rk3588", "host"])
def test_a_machine_that_answers_nothing_has_no_figures_and_says_why(name: str) -> None:
    board = Machine().board(name)
    sample, facts = board.sample(), board.facts()
    assert (sample.power_w, sample.temp_c, sample.clock_mhz, sample.wall_estimate_w) == (None, None, None, None)
    assert sample.missing
    assert all(sample.missing)
    assert facts.power_sensor is None
    assert any(note.startswith("no power figures") for note in facts.notes)
    assert board.disturbance([sample, sample]) == ()


# --- Raspberry Pi ----------------------------------------------------------------------------------------------------


def test_a_pi_5() -> None:
    board = pi().board("rpi5")
    sample, facts = board.sample(), board.facts()
    assert sample.power_w == pytest.approx(10.79, abs=0.01)
    assert sample.wall_estimate_w == pytest.approx(10.79 * 1.1451 + 0.5879, abs=0.02)
    assert sum(sample.rails_w.values()) == pytest.approx(sample.power_w)
    assert (sample.temp_c, sample.throttled, sample.supply_v) == (62.3, 0, 5.06788)
    assert sample.clock_mhz == pytest.approx(2400.03, abs=0.01)
    assert sample.missing == ()
    assert facts.model == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts.firmware == "bootloader 2025/12/08 19:29:54 2226a853, firmware 2026/04/14 22:20:24 9cd61c53"
    assert (facts.governor, facts.power_sensor, facts.power_scope) == ("ondemand", "pmic_read_adc", "board")
    assert len(facts.power_rails) == 12
    assert facts.notes == ()


def test_a_sample_of_power_alone_asks_nothing_else() -> None:
    machine = pi()
    sample = machine.board("rpi5").sample(full=False)
    assert machine.asked == ["vcgencmd pmic_read_adc"]
    assert sample.power_w is not None
    assert sample.missing == ()
    assert sample.full is False


def test_a_pi_4_has_no_power_and_is_not_asked_for_it() -> None:
    machine = pi(pmic=None)
    sample = machine.board("rpi4").sample()
    assert (sample.power_w, sample.wall_estimate_w) == (None, None)
    assert "vcgencmd pmic_read_adc" not in machine.asked
    assert machine.board("rpi4").facts().notes == ("no power figures: this board has no power sensor",)


def test_a_target_that_promises_a_sensor_the_board_lacks() -> None:
    sample = pi(pmic=UNKNOWN_COMMAND).board("rpi5").sample()
    assert sample.power_w is None
    assert "Command not registered" in sample.missing[0]


def test_a_rail_that_goes_missing_is_no_smaller_power() -> None:
    machine = pi()
    board = machine.board("rpi5")
    assert board.sample().power_w
    machine.answers["vcgencmd pmic_read_adc"] = "\n".join(
        line for line in PMIC_BUSY.splitlines() if "VDD_CORE" not in line
    )
    sample = board.sample()
    assert sample.power_w is None
    assert sample.rails_w == {}
    assert "VDD_CORE" in sample.missing[0]


def throttle_story(*bits: int) -> list[Sample]:
    return [Sample(t=float(index), throttled=value) for index, value in enumerate(bits)]


@pytest.mark.parametrize(
    ("bits", "said"),
    [
        ((0, 0), ()),
        ((0x50000, 0x50000), ()),  # it had happened before, and is not the case now
        ((0, 0x40000), ("throttled during the measurement",)),
        ((0x40000, 0x50000), ("under-voltage during the measurement",)),
        ((0x40000, 0x40004, 0x40000), ("throttled during the measurement",)),  # seen at its own moment
        ((0x40008, 0x40008), ("soft temperature limit reached during the measurement",)),
        ((0x50000, 0x0), ("the board was restarted during the measurement",)),
        ((), ()),
    ],
)
def test_what_throttling_says_against_a_measurement(bits: tuple[int, ...], said: tuple[str, ...]) -> None:
    assert Machine().board("rpi5").disturbance(throttle_story(*bits)) == said


def test_samples_of_power_alone_between_do_not_hide_the_bits() -> None:
    samples = throttle_story(0, 0x50000)
    samples.insert(1, Sample(t=0.5, full=False, power_w=3.0))
    assert len(Machine().board("rpi5").disturbance(samples)) == 2


def test_only_the_bits_of_the_target_count() -> None:
    target = load("rpi5")
    thermal = replace(target.thermal, sticky_mask=0x10000)
    board = detect(replace(target, thermal=thermal), Machine().read, Machine().run)
    assert board.disturbance(throttle_story(0, 0xE000E)) == ()
    assert board.disturbance(throttle_story(0, 0x10000)) == ("under-voltage during the measurement",)


def test_a_board_that_throttled_before_can_be_used_and_says_so() -> None:
    facts = pi(bits="0x50000").board("rpi5").facts()
    assert facts.throttled == 0x50000
    assert facts.notes[0].startswith("since the board started: under-voltage, throttled;")


def test_a_weak_supply_is_told() -> None:
    facts = pi(pmic=PMIC_BUSY.replace("volt(24)=5.06788000V", "volt(24)=4.70100000V")).board("rpi5").facts()
    assert facts.supply_v == 4.701
    assert "4.70 V" in facts.notes[-1]


@pytest.mark.parametrize("name", ["rpi5", "rpi4"])
def test_the_emulated_boards_sensors_are_read_as_they_were_set(name: str) -> None:
    target, machine = load(name), Machine()

    def write(files: object) -> None:
        assert isinstance(files, dict)
        for path, text in files.items():
            if path.startswith(VCGENCMD):
                machine.answers["vcgencmd " + path.removeprefix(VCGENCMD + "/").replace(".", " ")] = text

    sensors = Sensors(target, write)
    sensors.set("cool")
    board = machine.board(name)
    before = board.sample()
    assert before.temp_c == 45.0
    assert before.power_w == (pytest.approx(3.0) if name == "rpi5" else None)
    sensors.set(Readings(temperature_c=85.2, clock_mhz=1500.0, now=Throttled.THROTTLED, watts=5.0))
    during = board.sample()
    assert during.clock_mhz == 1500.0
    sensors.set("cool")
    said = board.disturbance([before, during, board.sample()])
    assert said[0] == "throttled during the measurement"
    assert said[1] == "85.2 °C reached; throttling begins at 80 °C"


# --- Jetson ----------------------------------------------------------------------------------------------------------


def test_an_orin_nano() -> None:
    board = jetson(orin(ORIN_NANO)).board("jetson-orin-nano")
    sample, facts = board.sample(), board.facts()
    assert sample.power_w == pytest.approx(5.008 * 1.136)
    assert sample.rails_w == pytest.approx(
        {"VDD_IN": 5.008 * 1.136, "VDD_CPU_GPU_CV": 5.008 * 0.16, "VDD_SOC": 5.008 * 0.288}
    )
    assert (sample.temp_c, sample.clock_mhz) == (50.531, 1344.0)
    assert sample.events == {"oc1": 0, "oc3": 7}
    assert sample.missing == ()
    assert (facts.firmware, facts.jetpack, facts.power_mode) == ("L4T 36.4.3", "6.2", "25W")
    assert (facts.clocks_pinned, facts.governor) == (False, "schedutil")
    assert (facts.power_sensor, facts.power_scope, facts.power_rails) == ("ina3221", "board", ("VDD_IN",))
    assert facts.notes == ()


def test_the_other_path_to_the_same_monitor() -> None:
    base = "/sys/bus/i2c/drivers/ina3221/1-0040"
    files = {path.replace(HWMON.format(1), f"{base}/hwmon/hwmon1"): text for path, text in orin(ORIN_NANO).items()} | {
        f"{base}/name": "ina3221\n",
        "/sys/bus/i2c/drivers/ina3221/bind": "",
        f"{base}/hwmon/..": "",
    }
    sample = jetson(files).board("jetson-orin-nano").sample()
    assert sample.power_w == pytest.approx(5.008 * 1.136)


def test_the_driver_of_l4t_32() -> None:
    base = "/sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files: dict[str, str] = {}
    for index, (label, mv, ma) in enumerate([("POM_5V_IN", 5000, 400), ("POM_5V_GPU", 5000, 20)]):
        files |= {f"{base}/rail_name_{index}": label, f"{base}/in_voltage{index}_input": f"{mv}\n"}
        files[f"{base}/in_current{index}_input"] = f"{ma}\n"
    machine = jetson(files)
    channels = ina3221.find(machine.read, machine.run)
    assert ina3221.rails(channels, machine.read).value == pytest.approx({"POM_5V_IN": 2.0, "POM_5V_GPU": 0.1})
    assert ina3221.counted([channel.rail for channel in channels], ()).value == ("POM_5V_IN",)


def test_an_agx_orin_counts_no_rail_twice() -> None:
    second = orin([("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 80), ("NC", 0, 0)], chip=2)
    board = jetson(orin(AGX) | second).board("jetson-agx-orin")
    facts, sample = board.facts(), board.sample()
    assert facts.power_rails == ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    assert "VDDQ_VDD2_1V8AO" in sample.rails_w
    assert "NC" not in sample.rails_w
    assert sample.power_w == pytest.approx(19.864 * 0.24 + 4.968 * 0.953)
    assert "not its carrier board" in facts.notes[-1]


def test_thor_is_measured_at_its_input() -> None:
    files = orin([("VDD_GPU", 12040, 640), ("VDD_CPU_SOC_MSS", 12040, 960), ("VIN_SYS_5V0", 5088, 1740)])
    files |= {f"{HWMON.format(2)}/name": "ina238\n", f"{HWMON.format(2)}/power1_input": "26686000\n"}
    board = jetson(files).board("jetson-thor")
    assert board.sample().power_w == pytest.approx(26.686)
    assert board.facts().power_rails == ("VIN",)


def test_a_rail_that_the_target_names_and_the_board_lacks() -> None:
    board = jetson(orin(AGX)).board("jetson-orin-nano")
    sample = board.sample()
    assert sample.power_w is None
    assert "no rail VDD_IN" in sample.missing[0]
    assert "VDD_GPU_SOC" in sample.missing[0]


def test_a_monitor_that_stops_answering_is_no_zero() -> None:
    machine = jetson(orin(ORIN_NANO))
    board = machine.board("jetson-orin-nano")
    del machine.files[f"{HWMON.format(1)}/curr2_input"]
    sample = board.sample()
    assert sample.power_w is None
    assert sample.rails_w == {}
    assert "curr2_input" in sample.missing[0]


def test_another_power_mode_is_told() -> None:
    machine = jetson(orin(ORIN_NANO))
    machine.answers["nvpmodel -q"] = "NV Power Mode: 15W\n0\n"
    assert "power mode 15W; the target's figures are for 25W" in machine.board("jetson-orin-nano").facts().notes


def test_over_current_during_a_measurement() -> None:
    machine = jetson(orin(ORIN_NANO))
    board = machine.board("jetson-orin-nano")
    before = board.sample()
    machine.files[f"{HWMON.format(3)}/oc3_event_cnt"] = "9\n"
    said = board.disturbance([before, board.sample()])
    assert said == ("2 times instantaneous over-current throttled the board during the measurement",)
    machine.files[f"{HWMON.format(3)}/oc3_event_cnt"] = "0\n"
    assert board.disturbance([before, board.sample()]) == ("the board was restarted during the measurement",)


def test_tegrastats_is_asked_once_and_bounded() -> None:
    machine = jetson(orin(ORIN_NANO))
    board = machine.board("jetson-orin-nano")
    assert isinstance(board, Jetson)
    machine.answers["sh -c timeout 3 tegrastats --interval 100 | head -n 1"] = TEGRASTATS["orin nx, L4T 35"]
    stats = board.stats().value
    assert stats is not None
    assert stats.gpu_percent == 0


@pytest.mark.parametrize(
    ("made", "title"),
    [
        (processor.of_onnxruntime(["CPUExecutionProvider"], ["CPUExecutionProvider"]), "CPU"),
        (
            processor.of_onnxruntime(["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]),
            "CPU (of a CUDA build)",
        ),
        (
            processor.of_onnxruntime(["CUDAExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]),
            "GPU (CUDA)",
        ),
        (processor.of_llamacpp("CPU : NEON = 1 | ARM_FMA = 1 | DOTPROD = 1 | ", 99), "CPU"),
        (processor.of_llamacpp("CUDA : ARCHS = 870 | USE_GRAPHS = 1 | CPU : NEON = 1 | ", 99), "GPU (CUDA)"),
        (processor.of_llamacpp("CUDA : ARCHS = 870 | CPU : NEON = 1 | ", 0), "CPU (of a CUDA build)"),
    ],
)
def test_runs_on_cpu_and_gpu_have_names_of_their_own(made: processor.Processor, title: str) -> None:
    assert made.title == title


# --- Linux -----------------------------------------------------------------------------------------------------------


def rock() -> Machine:
    files = {"/sys/devices/system/cpu/present": "0-7\n", "/proc/device-tree/model": "Radxa ROCK 5B\0"}
    for index, (kind, temp) in enumerate(
        [("soc-thermal", 45000), ("bigcore0-thermal", 61000), ("littlecore-thermal", 44000), ("wifi", 90000)]
    ):
        files |= {f"/sys/class/thermal/thermal_zone{index}/type": f"{kind}\n"}
        files[f"/sys/class/thermal/thermal_zone{index}/temp"] = f"{temp}\n"
    for policy, khz in ((0, 1800000), (4, 2256000), (6, 2304000)):
        base = f"/sys/devices/system/cpu/cpufreq/policy{policy}"
        files |= {f"{base}/scaling_governor": "ondemand\n" if policy else "performance\n"}
        files[f"{base}/scaling_cur_freq"] = f"{khz}\n"
    files["/sys/devices/system/cpu/cpufreq/policy6/cpuinfo_cur_freq"] = "2100000\n"
    files |= {"/sys/class/thermal/cooling_device0/type": "fan\n", "/sys/class/thermal/cooling_device0/cur_state": "3\n"}
    files["/sys/class/thermal/cooling_device1/type"] = "thermal-cpufreq-0\n"
    files["/sys/class/thermal/cooling_device1/cur_state"] = "0\n"
    return Machine(files)


def test_a_board_of_the_kernel_alone() -> None:
    machine = rock()
    board = machine.board("rk3588")
    sample, facts = board.sample(), board.facts()
    assert sample.temp_c == 61.0  # the Wi-Fi's 90 °C are not the chip's
    assert sample.clock_mhz == 2256.0  # policy 6 runs at 2100, whatever it was asked for
    assert sample.cooling == 0
    assert sample.power_w is None
    assert (facts.model, facts.governor) == ("Radxa ROCK 5B", "ondemand, performance")
    assert board.disturbance([sample, sample]) == ()


def test_a_clock_that_is_held_down_for_heat() -> None:
    machine = rock()
    board = machine.board("rk3588")
    before = board.sample()
    machine.files["/sys/class/thermal/cooling_device1/cur_state"] = "2\n"
    assert board.disturbance([before, board.sample()]) == (
        "the kernel held the CPU's clock down for heat (by up to 2 steps)",
    )


def test_a_clock_that_never_reaches_the_targets() -> None:
    slow = [Sample(t=0.0, clock_mhz=1500.0), Sample(t=1.0, clock_mhz=1800.0)]
    assert disturb.common(load("rpi5"), slow) == ("the clock never rose above 1800 MHz; the target says 2400 MHz",)
    assert disturb.common(load("rpi5"), [*slow, Sample(t=2.0, clock_mhz=2399.9)]) == ()


def test_a_board_without_zones_of_its_chip_has_the_hottest_of_all() -> None:
    files = {"/sys/class/thermal/thermal_zone2/type": "acpitz\n", "/sys/class/thermal/thermal_zone2/temp": "27800\n"}
    assert Machine(files).board("arm64-generic").sample().temp_c == 27.8


def packages(uj: int, span: int = 262143328850) -> dict[str, str]:
    base = "/sys/class/powercap/intel-rapl:0"
    return {f"{base}/name": "package-0\n", f"{base}/energy_uj": f"{uj}\n", f"{base}/max_energy_range_uj": f"{span}\n"}


def test_a_hosts_energy_counter() -> None:
    machine, now = Machine(packages(262143328850 - 5_000_000)), [10.0]
    board = detect(load("host"), machine.read, machine.run, lambda: now[0])
    first = board.sample()
    machine.files |= packages(15_000_000)
    now[0] = 12.0
    second = board.sample()
    assert (first.energy_j, first.power_w) == (0.0, None)
    assert second.energy_j == pytest.approx(20.0)
    assert second.power_w == pytest.approx(10.0)
    facts = board.facts()
    assert (facts.power_sensor, facts.power_scope, facts.power_rails) == ("powercap", "soc", ("package-0",))


def test_a_counter_that_only_root_may_read_is_none() -> None:
    files = packages(1)
    del files["/sys/class/powercap/intel-rapl:0/energy_uj"]
    assert Machine(files).board("host").facts().power_sensor is None


def test_a_described_board_has_no_counter_of_its_host() -> None:
    assert Machine(packages(1)).board("arm64-generic").facts().power_sensor is None


def test_the_memory_part_of_a_package_is_not_added_to_it() -> None:
    files = packages(1) | {path.replace("rapl:0", "rapl:1"): text for path, text in packages(1).items()}
    files["/sys/class/powercap/intel-rapl:1/name"] = "psys\n"
    assert len(linux.energy_counters(Machine(files).read)) == 1
