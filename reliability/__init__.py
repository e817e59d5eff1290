"""What takes too long for `make test`: `make reliability` runs all of it."""
