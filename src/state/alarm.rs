//! Alarms: conditions that an operator has to fix, and under which requests are refused.

use std::collections::BTreeSet;

use crate::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, alarm_request::AlarmAction,
};
use crate::storage::schema::{self, meta};
use crate::storage::{self, Batch, Family, Read};
use crate::types::MemberId;

/// All active alarms.
#[derive(Clone, Default, Debug, PartialEq)]
pub struct Alarms {
    active: BTreeSet<(i32, MemberId)>,
}

impl Alarms {
    pub fn load(read: &dyn Read) -> storage::Result<Self> {
        let mut active = BTreeSet::new();
        let upper = schema::prefix_end(meta::ALARMS);
        let mut cursor = read.cursor(Family::Meta, meta::ALARMS, upper.as_deref())?;
        while cursor.next()? {
            let [kind, member] = schema::meta_numbers(cursor.key(), meta::ALARMS)?;
            active.insert((kind as i32, MemberId(member)));
        }
        Ok(Self { active })
    }

    pub fn has(&self, kind: AlarmType) -> bool {
        self.active.iter().any(|(active, _)| *active == kind as i32)
    }

    /// The alarms of a kind, or all of them for `NONE`.
    pub fn list(&self, kind: i32) -> Vec<AlarmMember> {
        self.active
            .iter()
            .filter(|(active, _)| kind == AlarmType::None as i32 || *active == kind)
            .map(|(active, member)| alarm_member(*active, *member))
            .collect()
    }

    /// Executes a request; returns the alarms that it is about.
    pub fn execute(&mut self, request: &AlarmRequest, batch: &mut Batch) -> Vec<AlarmMember> {
        let member = MemberId(request.member_id);
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.list(request.alarm),
            Ok(AlarmAction::Activate) if request.alarm == AlarmType::None as i32 => Vec::new(),
            Ok(AlarmAction::Activate) => vec![self.activate(request.alarm, member, batch)],
            Ok(AlarmAction::Deactivate) => self
                .deactivate(request.alarm, member, batch)
                .into_iter()
                .collect(),
            Err(_) => Vec::new(),
        }
    }

    /// Raises an alarm; raising it again changes nothing.
    fn activate(&mut self, kind: i32, member: MemberId, batch: &mut Batch) -> AlarmMember {
        if self.active.insert((kind, member)) {
            batch.put(Family::Meta, &alarm_key(kind, member), &[]);
        }
        alarm_member(kind, member)
    }

    /// Clears an alarm; `None` where it was not raised.
    fn deactivate(
        &mut self,
        kind: i32,
        member: MemberId,
        batch: &mut Batch,
    ) -> Option<AlarmMember> {
        if !self.active.remove(&(kind, member)) {
            return None;
        }
        batch.delete(Family::Meta, &alarm_key(kind, member));
        Some(alarm_member(kind, member))
    }
}

fn alarm_key(kind: i32, member: MemberId) -> Vec<u8> {
    schema::meta_key(meta::ALARMS, &[kind as u64, member.0])
}

fn alarm_member(kind: i32, member: MemberId) -> AlarmMember {
    AlarmMember {
        member_id: member.0,
        alarm: kind,
    }
}
