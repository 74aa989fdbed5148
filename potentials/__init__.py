"""Energy functions, one per file. Import them as `boltztilt.potentials.<file>`."""

if __name__ != "boltztilt.potentials":
    raise ImportError("this folder is the package boltztilt.potentials: import it by that name")
