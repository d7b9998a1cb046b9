"""The reference models of statecheck: trained, shipped, and found through the entry points `statecheck.models`."""
