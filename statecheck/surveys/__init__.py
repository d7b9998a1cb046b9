"""Surveys: the laws run on every model of a library, each built tiny from its own configuration with random weights."""
