//! Negative controls: what is wrong on purpose must turn the matrix red.
