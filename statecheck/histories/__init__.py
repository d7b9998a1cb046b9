"""Histories of calls and of operations on a state: as values, drawn, played on a model, and written as scripts."""
