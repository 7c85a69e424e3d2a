"""The wide world: named things, printed words, charts; a captioner that takes a focus."""
