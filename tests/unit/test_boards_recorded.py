"""What boards really print, as public pages show it, and what is read from it."""

# ruff: noqa: E501, W291

from __future__ import annotations

import pytest

from edgekit.devices.boards import linux, tegra, throttle, vcgencmd

# --- Raspberry Pi ----------------------------------------------------------------------------------------------------

# https://github.com/jfikar/RPi5-power (README)
PMIC_BUSY = """\
 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=10.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""
# https://github.com/raspberrypi/linux/issues/7348
VERSION = "2026/04/14 22:20:24 \nCopyright (c) 2012 Broadcom\nversion 9cd61c53 (release) (embedded)\n"
# https://github.com/raspberrypi/linux/issues/1337 (Raspberry Pi 3)
VERSION_OLD = """\
Mar  7 2016 17:08:55 
Copyright (c) 2012 Broadcom
version 552adf40d2c18ab95fbfbbca990d303a170f3d74 (clean) (release)
"""
# A Compute Module 5 with the bootloader of https://github.com/raspberrypi/rpi-eeprom, release of 2025-12-08
BOOTLOADER = """\
2025/12/08 19:29:54
version 2226a853bb9f5fd80392e3a4a89e457aeca88008 (release)
timestamp 1765222194
update-time 1774980226
capabilities 0x0000007f
"""
UNKNOWN_COMMAND = 'error=1 error_msg="Command not registered"\n'


def test_the_rails_of_a_busy_pi_5_are_added_up() -> None:
    pmic = vcgencmd.pmic(PMIC_BUSY).value
    assert pmic is not None
    assert len(pmic.rails_w) == 12
    assert pmic.rails_w["VDD_CORE"] == pytest.approx(10.87674 * 0.8974594)
    assert pmic.watts == pytest.approx(10.79, abs=0.01)
    assert pmic.volts["EXT5V"] == 5.06788
    assert "EXT5V" not in pmic.rails_w
    assert "BATT" not in pmic.rails_w


@pytest.mark.parametrize("lost", range(1, 26))
def test_an_answer_that_was_cut_short_is_no_smaller_power(lost: int) -> None:
    whole = PMIC_BUSY.splitlines(keepends=True)
    reading = vcgencmd.pmic("".join(whole[:-lost]))
    supply_only = lost <= 2  # EXT5V and BATT carry no power
    assert (reading.value is not None) == supply_only
    assert supply_only or reading.reason


def test_a_line_that_is_cut_in_its_number_is_refused() -> None:
    assert vcgencmd.pmic(PMIC_BUSY.replace("=10.87674000A", "=10.8767")).value is None


def test_a_pi_without_a_pmic_says_so() -> None:
    reading = vcgencmd.pmic(UNKNOWN_COMMAND)
    assert reading.value is None
    assert "Command not registered" in reading.reason


@pytest.mark.parametrize(
    ("said", "bits"),
    [
        ("throttled=0x0\n", 0),
        ("throttled=0x50000\n", 0x50000),  # https://www.raspberrypi.com/documentation/computers/os.html#get_throttled
        ("throttled=0x50005\n", 0x50005),
        ("throttled=0xE0008", 0xE0008),
    ],
)
def test_throttled(said: str, bits: int) -> None:
    assert vcgencmd.throttled(said).value == bits


def test_the_bits_in_words() -> None:
    assert throttle.now(0x50005) == ("under-voltage", "throttled")
    assert throttle.since_boot(0xE0008) == ("ARM clock capped", "throttled", "soft temperature limit reached")
    assert throttle.fresh(0x10000, 0x50000) == ("throttled",)
    assert throttle.fresh(0x50000, 0x50000) == ()
    assert throttle.fresh(0, 0xF0000, mask=0x10000) == ("under-voltage",)


@pytest.mark.parametrize(
    ("said", "mhz"),
    [
        ("frequency(0)=2400033024\n", 2400.033024),  # Raspberry Pi 5
        ("frequency(48)=1500398464\n", 1500.398464),  # Raspberry Pi 4
        ("frequency(45)=1400000000 \n", 1400.0),  # https://github.com/duckietown/Software/issues/358 (Pi 3B+)
    ],
)
def test_the_clock(said: str, mhz: float) -> None:
    assert vcgencmd.clock(said).value == pytest.approx(mhz)


def test_the_clock_of_a_block_that_is_off_is_none() -> None:
    assert vcgencmd.clock("frequency(0)=0\n").value is None  # https://github.com/raspberrypi/linux/issues/7348


def test_the_temperature() -> None:
    assert vcgencmd.temperature("temp=62.3'C \n").value == 62.3
    assert vcgencmd.temperature("temp=62.3°C").value is None


@pytest.mark.parametrize(
    ("said", "firmware"),
    [
        (VERSION, "2026/04/14 22:20:24 9cd61c53"),
        (VERSION_OLD, "Mar  7 2016 17:08:55 552adf40"),
        (BOOTLOADER, "2025/12/08 19:29:54 2226a853"),
        (UNKNOWN_COMMAND, None),
        (None, None),
    ],
)
def test_the_firmware(said: str | None, firmware: str | None) -> None:
    assert vcgencmd.firmware(said) == firmware


# --- Jetson ----------------------------------------------------------------------------------------------------------

# https://github.com/DataDog/datadog-agent, pkg/collector/corechecks/nvidia/jetson/jetson_test.go; the lines of
# L4T 38 and 39 have the rails of https://github.com/rbonghi/jetson_stats/pull/900.
TEGRASTATS = {
    "tx1, L4T 28": "RAM 3468/3983MB (lfb 48x4MB) SWAP 873/8192MB (cached 295MB) cpu [17%,13%,29%,5%]@408 EMC 1%@408 APE 25 GR3D 3%@76",
    "tx2, L4T 32": "RAM 2344/7852MB (lfb 1154x4MB) SWAP 0/3926MB (cached 0MB) CPU [1%@345,off,off,1%@345,0%@345,2%@345] EMC_FREQ 4%@1600 GR3D_FREQ 0%@624 APE 150 PLL@37.5C MCPU@37.5C PMIC@100C Tboard@32C GPU@35C BCPU@37.5C thermal@36.5C Tdiode@34.25C VDD_SYS_GPU 152/152 VDD_SYS_SOC 687/687 VDD_4V0_WIFI 0/0 VDD_IN 3056/3056 VDD_SYS_CPU 152/152 VDD_SYS_DDR 883/883",
    "nano, L4T 32": "RAM 534/3964MB (lfb 98x4MB) SWAP 5/1982MB (cached 1MB) IRAM 0/252kB(lfb 252kB) CPU [16%@204,9%@204,0%@204,0%@204] EMC_FREQ 0%@204 GR3D_FREQ 0%@76 APE 25 PLL@34C CPU@36.5C PMIC@100C GPU@36C AO@39.5C thermal@36.25C POM_5V_IN 1022/1022 POM_5V_GPU 0/0 POM_5V_CPU 204/204",
    "agx xavier, L4T 32": "RAM 721/31927MB (lfb 7291x4MB) SWAP 0/15963MB (cached 0MB) CPU [2%@1190,0%@1190,0%@1190,0%@1190,off,off,off,off] EMC_FREQ 0%@665 GR3D_FREQ 0%@318 APE 150 MTS fg 0% bg 0% AO@37.5C GPU@37.5C Tdiode@40C PMIC@100C AUX@36C CPU@37.5C thermal@36.9C Tboard@37C GPU 0/0 CPU 311/311 SOC 932/932 CV 0/0 VDDRQ 621/621 SYS5V 1482/1482",
    "orin nx, L4T 35": "RAM 6334/15388MB (lfb 1770x4MB) SWAP 491/7694MB (cached 0MB) CPU [6%@729,9%@729,5%@729,16%@729,off,off,off,off] EMC_FREQ 0%@2133 GR3D_FREQ 0%@611 VIC_FREQ 729 APE 174 CV0@45.812C CPU@47.937C SOC2@46.093C SOC0@46.968C CV1@46.406C GPU@45.875C tj@48.875C SOC1@48.875C CV2@45.75C VDD_IN 5299mW/5299mW VDD_CPU_GPU_CV 773mW/773mW VDD_SOC 1424mW/1424mW",
    "agx orin, L4T 36": "RAM 29114/30697MB (lfb 3x4MB) SWAP 4915/15348MB (cached 1MB) CPU [3%@729,4%@729,0%@729,1%@729,0%@2201,100%@2201,1%@2201,0%@2201,100%@2201,0%@2201,0%@2201,0%@2201] EMC_FREQ 1%@2133 GR3D_FREQ 0%@[305,305] NVENC off NVDEC off NVJPG off NVJPG1 off VIC off OFA off NVDLA0 off NVDLA1 off PVA0_FREQ off APE 174 cpu@53.062C soc2@48.25C soc0@48.843C gpu@47.812C tj@53.062C soc1@48.968C VDD_GPU_SOC 3205mW/3205mW VDD_CPU_CV 4405mW/4405mW VIN_SYS_5V0 4767mW/4767mW",
    "thor, L4T 38": "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,10%@972,off,33%@1890] cpu@39.812C tj@39.906C soc012@38.812C gpu@39.906C soc345@38.625C VDD_GPU 3561mW/3561mW VDD_CPU_SOC_MSS 7910mW/7910mW VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW",
    "thor, three figures": "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972] tj@39.906C VDD_GPU 3561mW/3500mW/9000mW VIN 26686mW/26000mW/41000mW",
}  # fmt: skip
READ = {  # hottest °C, one rail and its watts, number of rails, MHz of the first core, GPU % and MHz
    "tx1, L4T 28": (None, None, 0, 408, 3, 76),
    "tx2, L4T 32": (37.5, ("VDD_IN", 3.056), 6, 345, 0, 624),
    "nano, L4T 32": (39.5, ("POM_5V_IN", 1.022), 3, 204, 0, 76),
    "agx xavier, L4T 32": (40.0, ("SYS5V", 1.482), 6, 1190, 0, 318),
    "orin nx, L4T 35": (48.875, ("VDD_IN", 5.299), 3, 729, 0, 611),
    "agx orin, L4T 36": (53.062, ("VDD_CPU_CV", 4.405), 3, 729, 0, 305),
    "thor, L4T 38": (39.906, ("VIN", 26.686), 4, 972, None, None),
    "thor, three figures": (39.906, ("VIN", 26.686), 2, 972, None, None),
}


@pytest.mark.parametrize("board", TEGRASTATS)
def test_tegrastats(board: str) -> None:
    stats = tegra.tegrastats(TEGRASTATS[board] + "\n").value
    assert stats is not None
    hottest, rail, rails, mhz, percent, gpu = READ[board]
    assert stats.temp_c == hottest
    assert rail is None or stats.rails_w[rail[0]] == pytest.approx(rail[1])
    assert len(stats.rails_w) == rails
    assert stats.cpu_mhz[0] == mhz
    assert (stats.gpu_percent, stats.gpu_mhz) == (percent, gpu)


def test_the_last_line_of_tegrastats_counts_and_cores_that_are_off_do_not() -> None:
    stats = tegra.tegrastats(f"{TEGRASTATS['nano, L4T 32']}\n{TEGRASTATS['tx2, L4T 32']}\n").value
    assert stats is not None
    assert stats.cpu_mhz == (345, 345, 345, 345)


def test_a_busy_orin_nano() -> None:
    # L4T 36: the GPU's clock stands in brackets, https://docs.nvidia.com/jetson/archives/r36.3/DeveloperGuide/.
    said = "11-30-2025 13:26:01 RAM 2461/7620MB (lfb 3x2MB) SWAP 1243/3810MB (cached 5MB) CPU [19%@729,14%@729] EMC_FREQ 4%@2133 GR3D_FREQ 99%@[1007] NVDEC off APE 200 cpu@46.531C gpu@48.218C tj@48.843C VDD_IN 5704mW/5704mW VDD_CPU_GPU_CV 831mW/831mW VDD_SOC 1624mW/1624mW"  # fmt: skip
    stats = tegra.tegrastats(said).value
    assert stats is not None
    assert (stats.gpu_percent, stats.gpu_mhz) == (99, 1007)


@pytest.mark.parametrize(
    ("said", "l4t", "jetpack"),
    [
        # https://github.com/ArduCAM/MIPI_Camera/issues/108
        ("# R32 (release), REVISION: 5.1, GCID: 26202423, BOARD: t186ref, EABI: aarch64, DATE: Fri Feb 19 16:50:29 UTC 2021\n", "32.5.1", "4.5.1"),
        # Releases of https://developer.nvidia.com/embedded/jetson-linux-archive; JetPack by its pages.
        ("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023\n", "35.4.1", "5.1.2"),
        ("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n", "36.4.3", "6.2"),
        ("# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: Thu Sep 18 22:54:44 UTC 2025\n", "36.4.7", "6.2.1"),
        ("# R36 (release), REVISION: 5.0, GCID: 43688277, BOARD: generic, EABI: aarch64, DATE: Fri Jan 16 03:50:45 UTC 2026\n", "36.5.0", "6.2.2"),
        ("# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025\n# KERNEL_VARIANT: oot\nINSTALL_TYPE=\n", "38.2.0", "7.0"),
        ("# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic\n", "38.4.0", "7.1"),
        ("# R77 (release), REVISION: 1.0, GCID: 1, BOARD: generic\n", "77.1.0", None),
    ],
)  # fmt: skip
def test_the_release_of_jetson_linux(said: str, l4t: str, jetpack: str | None) -> None:
    assert tegra.l4t(said).value == l4t
    assert tegra.jetpack(l4t) == jetpack


@pytest.mark.parametrize(
    ("said", "name", "number"),
    [
        # Orin Nano with L4T 36.4 and 39
        ("NV Power Mode: 25W\n1\n", "25W", 1),
        ("NV Power Mode: MAXN_SUPER\n2\n", "MAXN_SUPER", 2),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_6CORE\n2\n", "MODE_15W_6CORE", 2),  # L4T 35
        ("NV Fan Mode:cool\nNV Power Mode: MAXN\n0\n", "MAXN", 0),  # Xavier, L4T 32
        (
            "NVPM VERB: Config file: /etc/nvpmodel.conf\nNVPM VERB: parsing done for /etc/nvpmodel.conf\n"
            "NVPM VERB: Current mode: NV Power Mode: 25W\n1\nNVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: REAL_VAL: 1\n",
            "25W",
            1,
        ),
        (
            "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\n"
            "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
            "MODE_15W_DESKTOP",
            7,
        ),
    ],
)
def test_the_power_mode(said: str, name: str, number: int) -> None:
    mode = tegra.power_mode(said).value
    assert mode is not None
    assert (mode.name, mode.id) == (name, number)


# Orin Nano Super, L4T 36.4.3; cores 2 to 5 are left out
CLOCKS_ORIN = """\
SOC family:tegra234  Machine:NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super
Online CPUs: 0-5
cpu0:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=729600 IdleStates: WFI=1 c7=1 
cpu1:  Online=1 Governor=schedutil MinFreq=729600 MaxFreq=1344000 CurrentFreq=1190400 IdleStates: WFI=1 c7=1 
GPU MinFreq=306000000 MaxFreq=918000000 CurrentFreq=306000000
Active GPU TPCs: 4
EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0
FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=69
NV Power Mode: 25W
"""
# Jetson Nano in its 5 W mode, where CPUs have one clock whatever jetson_clocks does, before and after it.
CLOCKS_NANO = """\
SOC family:tegra210  Machine:NVIDIA Jetson Nano Developer Kit
Online CPUs: 0-1
CPU Cluster Switching: Disabled
cpu0: Online=1 Governor=schedutil MinFreq=921600 MaxFreq=921600 CurrentFreq=921600 IdleStates: WFI=1 c7=1 
cpu1: Online=1 Governor=schedutil MinFreq=921600 MaxFreq=921600 CurrentFreq=921600 IdleStates: WFI=1 c7=1 
cpu2: Online=0 Governor=schedutil MinFreq=102000 MaxFreq=921600 CurrentFreq=921600 IdleStates: WFI=1 c7=1 
GPU MinFreq=76800000 MaxFreq=614400000 CurrentFreq=460800000
EMC MinFreq=204000000 MaxFreq=1600000000 CurrentFreq=1600000000 FreqOverride=0
Fan: speed=0
NV Power Mode: 5W
"""
CLOCKS_PINNED = CLOCKS_NANO.replace("GPU MinFreq=76800000", "GPU MinFreq=614400000").replace("WFI=1 c7=1", "WFI=0 c7=0")
CLOCKS_TX1 = """\
SOC family:tegra210  Machine:jetson_tx1
Online CPUs: 0-3
cpu0: Gonvernor=interactive MinFreq=1734000 MaxFreq=1734000 CurrentFreq=1734000
GPU MinFreq=998400000 MaxFreq=998400000 CurrentFreq=998400000
"""


@pytest.mark.parametrize(
    ("said", "pinned", "fastest"),
    [(CLOCKS_ORIN, False, 1190.4), (CLOCKS_NANO, False, 921.6), (CLOCKS_PINNED, True, 921.6), (CLOCKS_TX1, True, 1734)],
)
def test_jetson_clocks(said: str, pinned: bool, fastest: float) -> None:
    clocks = tegra.clocks(said).value
    assert clocks is not None
    assert clocks.pinned is pinned
    assert max(clocks.cpu_mhz) == fastest


def test_jetson_clocks_names_the_machine_and_the_governor() -> None:
    clocks = tegra.clocks(CLOCKS_ORIN).value
    assert clocks is not None
    assert clocks.machine == "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert clocks.governors == ("schedutil",)
    assert clocks.gpu_mhz == 306


def test_without_root_jetson_clocks_says_nothing_of_clocks() -> None:
    reading = tegra.clocks("Error: Please run jetson_clocks as root\n")
    assert reading.value is None
    assert "as root" in reading.reason


# --- Linux -----------------------------------------------------------------------------------------------------------


def test_an_energy_counter_that_starts_again_loses_nothing() -> None:
    span = 262143328850  # max_energy_range_uj of Intel packages
    values = iter([str(span - 1_000_000), str(1_000_000), str(3_000_000)])
    counter = linux.EnergyCounter("energy_uj", span)
    read = [counter.joules(lambda _: next(values)).value for _ in range(3)]
    assert read == pytest.approx([0.0, 2.0, 4.0])


def test_an_energy_counter_that_does_not_answer_has_a_reason() -> None:
    counter = linux.EnergyCounter("energy_uj", 100)
    assert counter.joules(lambda _: None).reason == "energy_uj gave no answer"
    assert counter.joules(lambda _: "101").value is None
