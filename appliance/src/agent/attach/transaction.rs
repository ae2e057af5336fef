//! Steps with undo: all of them happen, or none is left.

use std::fmt;

type Undo<'a> = Box<dyn FnOnce() -> anyhow::Result<()> + 'a>;

/// Steps that were done, and how each is undone.
#[derive(Default)]
pub(crate) struct Transaction<'a> {
    done: Vec<(&'static str, Undo<'a>)>,
}

/// A step that failed, and what couldn't be undone after it.
#[derive(Debug)]
pub(crate) struct Unwound {
    /// What failed.
    pub(crate) cause: anyhow::Error,
    /// What is left behind, in the order in which it was tried to be undone.
    pub(crate) left: Vec<(&'static str, anyhow::Error)>,
}

impl fmt::Display for Unwound {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#}", self.cause)?;
        for (step, error) in &self.left {
            write!(formatter, "\nand it could not be undone that {step}: {error:#}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Unwound {}

impl<'a> Transaction<'a> {
    /// Does `work`, which tells each step that it has done. When it fails, the steps are undone in reverse, every one
    /// of them, whatever the others say.
    ///
    /// # Errors
    /// What `work` said, and what couldn't be undone.
    pub(crate) fn run<T>(work: impl FnOnce(&mut Self) -> anyhow::Result<T>) -> Result<T, Unwound> {
        let mut transaction = Self { done: Vec::new() };
        match work(&mut transaction) {
            Ok(value) => Ok(value),
            Err(cause) => Err(transaction.unwind(cause)),
        }
    }

    /// Tells that a step was done (`what` as a sentence in the past), and how it is undone.
    pub(crate) fn done(&mut self, what: &'static str, undo: impl FnOnce() -> anyhow::Result<()> + 'a) {
        self.done.push((what, Box::new(undo)));
    }

    fn unwind(self, cause: anyhow::Error) -> Unwound {
        let left = self
            .done
            .into_iter()
            .rev()
            .filter_map(|(what, undo)| undo().err().map(|error| (what, error)))
            .collect();
        Unwound { cause, left }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn a_failure_undoes_every_step_in_reverse_and_collects_every_error() {
        let order = RefCell::new(Vec::new());
        let undone = |step: &'static str, works: bool| {
            let order = &order;
            move || {
                order.borrow_mut().push(step);
                if works {
                    Ok(())
                } else {
                    Err(anyhow::anyhow!("{step} is stuck"))
                }
            }
        };
        let unwound = Transaction::run(|transaction| {
            transaction.done("the device was made", undone("device", true));
            transaction.done("it was moved", undone("move", false));
            transaction.done("it was configured", undone("configuration", false));
            Err::<(), _>(anyhow::anyhow!("the agent refused"))
        })
        .unwrap_err();
        assert_eq!(*order.borrow(), ["configuration", "move", "device"]);
        assert_eq!(
            unwound.to_string(),
            "the agent refused\nand it could not be undone that it was configured: configuration is stuck\n\
             and it could not be undone that it was moved: move is stuck"
        );
    }

    #[test]
    fn success_undoes_nothing() {
        let value = Transaction::run(|transaction| {
            transaction.done("something was done", || Err(anyhow::anyhow!("never called")));
            Ok(7)
        });
        assert_eq!(value.unwrap(), 7);
    }
}
