"""Okabe and Ito's palette, which people with any kind of colour vision can tell apart."""

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
GREY = "#7F7F7F"
