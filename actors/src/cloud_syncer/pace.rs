//! Other times, for a syncer that runs.

use actix::prelude::*;

use super::CloudSyncer;
use crate::core::sync::Event;
use crate::messages::SetPace;

impl Handler<SetPace> for CloudSyncer {
    type Result = ();

    fn handle(&mut self, SetPace(pace): SetPace, ctx: &mut Self::Context) {
        self.options.pace = pace;
        self.advance(Event::Paced(pace), ctx);
    }
}
