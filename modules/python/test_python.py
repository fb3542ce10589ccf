from pathlib import Path

from moe_lab.testing import check_module_folder


def test_the_folder_is_a_contribution() -> None:
    check_module_folder(Path(__file__).parent)
