"""One file per concept; import from the file that holds the thing: `from eva_utils.utils.cutout import Cutout`."""
