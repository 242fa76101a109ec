//! What the stamped methods promise, through `&dyn Backend`.
