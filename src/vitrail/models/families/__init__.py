"""The families of this package, one file each; importing a file registers its family."""
