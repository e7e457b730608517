"""Pure mathematics: arrays in, arrays out. No files, no clocks, no logging; randomness only from a given seed."""
