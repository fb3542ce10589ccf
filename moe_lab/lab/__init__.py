"""The lab a command works in: where it is, what was contributed to it, and how contributed code is loaded.
Finding and listing read manifests only; code is imported by `Lab.load` alone."""

from moe_lab.lab.contributions import CATEGORIES, Category, Contribution
from moe_lab.lab.folder import FOLDERS, NEW_MODULE, TRAIN_A_TRUNK, init_lab, is_lab
from moe_lab.lab.lab import Lab, find_lab

__all__ = [
    "CATEGORIES",
    "FOLDERS",
    "NEW_MODULE",
    "TRAIN_A_TRUNK",
    "Category",
    "Contribution",
    "Lab",
    "find_lab",
    "init_lab",
    "is_lab",
]
