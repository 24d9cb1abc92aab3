//! Layers: reproducible tars, named by their content.

pub mod compress;
pub mod tar;
