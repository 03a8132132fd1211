"""Ranks, and the devices that they compute on."""
