"""Network interfaces follow gloo's and NCCL's rules, which differ, and the name of rank 0's machine is checked."""

from __future__ import annotations

import pytest

from pipeline.distributed.network import VARIABLES, check_interfaces, check_master, choose_interface
from pipeline.errors import ConfigError
from tests.conftest import run_command
from tests.helpers.trainings import WriteConfig

HERE = ("lo", "eth0", "ib0", "ib1")


@pytest.mark.parametrize(
    ("backend", "value"),
    [("gloo", ""), ("gloo", "ib0"), ("gloo", "ib0,ib1"), ("nccl", "ib"), ("nccl", "ib0,eth"), ("nccl", "=ib0"),
     ("nccl", "^lo,docker"), ("nccl", "^=ib")],
)  # fmt: skip
def test_what_is_there_will_do(backend: str, value: str) -> None:
    check_interfaces(backend, {VARIABLES[backend]: value}, HERE)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "value", "said"),
    [
        ("gloo", "ib2", "has no network interface ib2; it has lo, eth0, ib0, ib1"),
        ("gloo", "ib", "has no network interface ib;"),  # prefixes are NCCL's
        ("gloo", "^lo,docker", r"`\^` and prefixes are NCCL's: NCCL_SOCKET_IFNAME"),
        ("nccl", "=ib", "NCCL_SOCKET_IFNAME==ib"),
        ("nccl", "mlx", "has no network interface mlx"),
        ("nccl", "^lo,eth,ib", "or unset NCCL_SOCKET_IFNAME"),
    ],
)
def test_what_is_not_there_is_named(backend: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_interfaces(backend, {VARIABLES[backend]: value}, HERE)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["no-such-node.invalid", "bad..name"])
def test_a_machine_that_nobody_knows_is_named_at_once(host: str) -> None:
    with pytest.raises(ConfigError, match=rf"MASTER_ADDR={host}, the machine of rank 0, is not known on .*getent hosts {host}"):
        check_master(host, 29500, patience_s=0)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_names_and_addresses_of_both_kinds_are_known(host: str) -> None:
    check_master(host, 29500, patience_s=0)


ONE, TWO = (
    {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7"]},
    {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7"], "ib0": ["10.1.0.7"], "wlan0": []},
)


@pytest.mark.parametrize(
    ("own", "towards", "addresses", "named", "chosen"),
    [
        ("10.0.0.7", "10.1.0.7", TWO, "", None),  # gloo's own choice will do
        ("127.0.0.1", "127.0.0.1", ONE, "", None),  # all ranks may be here
        ("127.0.1.1", "10.1.0.7", TWO, "", "ib0"),  # towards rank 0
        ("127.0.1.1", "127.0.0.1", ONE, "", "eth0"),  # on rank 0's machine, which knows itself by that name alone
        ("127.0.1.1", "10.1.0.7", TWO, "eth0", None),  # somebody knows better
    ],
)
def test_gloo_is_not_left_with_an_address_that_nobody_reaches(
    own: str, towards: str, addresses: dict[str, list[str]], named: str, chosen: str | None
) -> None:
    found = choose_interface(own=own, towards_master=towards, addresses=addresses, environment={"GLOO_SOCKET_IFNAME": named})
    assert found == chosen


def test_several_that_would_do_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"knows itself as 127.0.1.1, .* has the interfaces eth0, ib0: name the one .* by GLOO_SOCKET_IFNAME"
    ):
        choose_interface(own="127.0.1.1", towards_master="127.0.1.1", addresses=TWO, environment={})


@pytest.mark.slow
def test_a_launch_says_so(write_config: WriteConfig) -> None:
    """It is an error that would happen again, which no job script should retry."""
    result = run_command("train", str(write_config()), GLOO_SOCKET_IFNAME="^lo,docker0")
    assert result.returncode == 2, result.stdout
    assert "GLOO_SOCKET_IFNAME=^lo,docker0: " in result.stdout
    assert "Traceback" not in result.stdout
