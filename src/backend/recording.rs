//! Calls that come again and again, which a backend may keep as a whole.
use std::any::Any;

/// What a backend has kept of some calls, see [`super::Backend::record`]. It holds no buffer: whoever frees one that the calls
/// use drops the recording first.
#[derive(Default)]
#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "no other backend keeps calls"))]
pub struct Recording(Option<Box<dyn Any>>);

#[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "no other backend keeps calls"))]
impl Recording {
    /// The backend's own part of it.
    pub(crate) fn part<T: Default + 'static>(&mut self) -> &mut T {
        if !self.0.as_ref().is_some_and(|part| part.is::<T>()) {
            self.0 = Some(Box::new(T::default()));
        }
        self.0.as_mut().and_then(|part| part.downcast_mut()).expect("made above")
    }
}
