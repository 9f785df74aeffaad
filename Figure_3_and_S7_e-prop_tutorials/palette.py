"""The colours of all figures: told apart by people with colour blindness, and in grey by their lightness.

Within each group the CIE lightness L* of two colours differs by at least 10 (`tests/test_figures.py`).
"""
BLACK, BLUE, VERMILION, GREEN, ORANGE, SKY = '#000000', '#0B4A8F', '#C4500A', '#2FA684', '#EFAF32', '#9CC9EC'
GREY, LIGHT_GREY = '#707070', '#B0B0B0'

SERIES = (BLACK, BLUE, VERMILION, GREEN, ORANGE)  # curves in one panel: learning signals, traces
LEFT, RIGHT, RECALL, NOISE = VERMILION, BLUE, GREEN, LIGHT_GREY
LIF, ALIF = BLACK, VERMILION
OUTPUT, TARGET = BLUE, ORANGE
TRACE, SIGNAL, SPIKE = BLUE, VERMILION, BLACK
CRITERION = VERMILION
