"""The floor: simple strong recommenders behind one contract."""
