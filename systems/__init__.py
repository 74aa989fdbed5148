"""Systems, one TOML file each, and their loader in `boltztilt.systems.system`."""

if __name__ != "boltztilt.systems":
    raise ImportError("this folder is the package boltztilt.systems: import it by that name")
