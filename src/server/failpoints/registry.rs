//! Which failpoint does what at present.

use parking_lot::Mutex;

use super::terms::{Effect, Terms};
use crate::env::Rng;
use crate::failpoints::Failpoint;

/// Why an order cannot be carried out, in gofail's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("failpoint: failpoint does not exist")]
    NoSuch,
    #[error("failpoint: failpoint is disabled")]
    Disabled,
    #[error("failpoint: could not parse terms")]
    BadTerms,
}

/// Why a list of failpoints cannot be set.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    #[error("bad failpoint {0:?}")]
    Form(String),
    #[error("{name}: {error}")]
    Order { name: String, error: OrderError },
}

/// All failpoints with their terms.
pub struct Registry {
    /// In the order of `Failpoint::ALL`.
    terms: Vec<Mutex<Option<Terms>>>,
    rng: Box<dyn Rng>,
}

impl Registry {
    /// With `rng` to draw chances from.
    pub fn new(rng: Box<dyn Rng>) -> Self {
        Self {
            terms: Failpoint::ALL.iter().map(|_| Mutex::default()).collect(),
            rng,
        }
    }

    fn find(&self, name: &str) -> Result<&Mutex<Option<Terms>>, OrderError> {
        let mut places = Failpoint::ALL.iter().zip(&self.terms);
        let found = places.find(|(place, _)| place.name() == name);
        found.map(|(_, terms)| terms).ok_or(OrderError::NoSuch)
    }

    /// Has a failpoint do what the terms say from now on; those that it had are forgotten.
    pub fn set(&self, name: &str, text: &str) -> Result<(), OrderError> {
        let place = self.find(name)?;
        let terms = Terms::parse(text).ok_or(OrderError::BadTerms)?;
        *place.lock() = Some(terms);
        Ok(())
    }

    /// The same for a list, `name=terms;name=terms`: all of it, or nothing.
    pub fn set_all(&self, list: &str) -> Result<(), ListError> {
        let mut found = Vec::new();
        for one in list.split(';').filter(|one| !one.is_empty()) {
            let mut parts = one.split('=');
            let (Some(name), Some(text), None) = (parts.next(), parts.next(), parts.next()) else {
                return Err(ListError::Form(one.to_owned()));
            };
            let order = |error| ListError::Order {
                name: name.to_owned(),
                error,
            };
            let place = self.find(name).map_err(order)?;
            let terms = Terms::parse(text).ok_or(OrderError::BadTerms);
            found.push((place, terms.map_err(order)?));
        }
        for (place, terms) in found {
            *place.lock() = Some(terms);
        }
        Ok(())
    }

    /// Has a failpoint do nothing.
    pub fn clear(&self, name: &str) -> Result<(), OrderError> {
        let terms = self.find(name)?.lock().take();
        terms.map(drop).ok_or(OrderError::Disabled)
    }

    /// The terms of a failpoint, and how often one of them was carried out.
    pub fn status(&self, name: &str) -> Result<(String, u64), OrderError> {
        let terms = self.find(name)?.lock();
        let terms = terms.as_ref().ok_or(OrderError::Disabled)?;
        Ok((terms.text().to_owned(), terms.executed()))
    }

    /// Every name and its terms, by name.
    pub fn list(&self) -> Vec<(&'static str, String)> {
        let text = |terms: &Mutex<Option<Terms>>| {
            let terms = terms.lock();
            terms
                .as_ref()
                .map_or(String::new(), |terms| terms.text().to_owned())
        };
        let places = Failpoint::ALL.iter().zip(&self.terms);
        let mut list: Vec<_> = places
            .map(|(place, terms)| (place.name(), text(terms)))
            .collect();
        list.sort_unstable();
        list
    }

    /// What a thread that came to a place has to do there.
    pub fn visit(&self, failpoint: Failpoint) -> Option<Effect> {
        let mut terms = self.terms.get(failpoint as usize)?.lock();
        terms.as_mut()?.next(self.rng.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemRng;

    fn registry() -> Registry {
        Registry::new(Box::new(SystemRng))
    }

    /// What is set, as it would be given.
    fn shown(registry: &Registry) -> String {
        let set = registry.list().into_iter();
        let set = set.filter(|(_, terms)| !terms.is_empty());
        let set: Vec<String> = set.map(|(name, terms)| format!("{name}={terms}")).collect();
        set.join(";")
    }

    #[test]
    fn names_are_there_once_and_in_order() {
        let list = registry().list();
        let names: Vec<&str> = list.iter().map(|(name, _)| *name).collect();
        assert_eq!(names.len(), Failpoint::ALL.len());
        assert!(names.is_sorted_by(|one, next| one < next), "{names:?}");
        assert!(list.iter().all(|(_, terms)| terms.is_empty()));
    }

    #[test]
    fn a_place_is_found_by_its_own_name() {
        let registry = registry();
        for place in Failpoint::ALL {
            registry.set(place.name(), "panic").expect("is there");
            for other in Failpoint::ALL {
                let effect = registry.visit(*other);
                assert_eq!(effect.is_some(), other == place, "{other:?} of {place:?}");
            }
            registry.clear(place.name()).expect("was set");
        }
    }

    #[test]
    fn a_failpoint_has_its_last_terms_and_their_count() {
        let registry = registry();
        let name = Failpoint::RaftBeforeSave.name();
        assert_eq!(registry.status(name), Err(OrderError::Disabled));
        assert_eq!(registry.clear(name), Err(OrderError::Disabled));
        assert_eq!(registry.status("x"), Err(OrderError::NoSuch));
        assert_eq!(registry.clear("x"), Err(OrderError::NoSuch));
        assert_eq!(registry.set("x", "off"), Err(OrderError::NoSuch));
        registry.set(name, "2*off").expect("terms");
        for _ in 0..3 {
            registry.visit(Failpoint::RaftBeforeSave);
        }
        assert_eq!(registry.status(name), Ok(("2*off".to_owned(), 2)));
        assert_eq!(registry.set(name, "of"), Err(OrderError::BadTerms));
        assert_eq!(registry.status(name), Ok(("2*off".to_owned(), 2)));
        registry.set(name, "off").expect("terms");
        assert_eq!(registry.status(name), Ok(("off".to_owned(), 0)));
        registry.clear(name).expect("was set");
        assert_eq!(registry.status(name), Err(OrderError::Disabled));
        assert_eq!(registry.visit(Failpoint::RaftBeforeSave), None);
    }

    #[test]
    fn a_list_is_set_whole_or_not_at_all() {
        let order = |name: &str, error| {
            let name = name.to_owned();
            Err(ListError::Order { name, error })
        };
        for (list, result, set) in [
            ("", Ok(()), ""),
            (";;", Ok(()), ""),
            ("walAfterSync=off", Ok(()), "walAfterSync=off"),
            (
                "walAfterSync=off;;walBeforeSync=sleep(1);",
                Ok(()),
                "walAfterSync=off;walBeforeSync=sleep(1)",
            ),
            (
                "walAfterSync=off;walAfterSync=print",
                Ok(()),
                "walAfterSync=print",
            ),
            ("walAfterSync=off;x=off", order("x", OrderError::NoSuch), ""),
            (
                "walAfterSync=off;walBeforeSync=",
                order("walBeforeSync", OrderError::BadTerms),
                "",
            ),
            (
                "walAfterSync=off;walBeforeSync",
                Err(ListError::Form("walBeforeSync".to_owned())),
                "",
            ),
            (
                "walAfterSync=off=off",
                Err(ListError::Form("walAfterSync=off=off".to_owned())),
                "",
            ),
        ] {
            let registry = registry();
            assert_eq!(registry.set_all(list), result, "{list}");
            assert_eq!(shown(&registry), set, "{list}");
        }
    }
}
