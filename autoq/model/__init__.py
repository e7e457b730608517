"""From a trained model to candidates: load, prepare, read layers, calibrate, bank, lower."""
