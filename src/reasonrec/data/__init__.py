"""Raw files -> Dataset: readers, validation, filters, splits, and the planted world."""
