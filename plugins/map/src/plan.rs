//! Which registers are read together.

use sandgate_driver::modbus::{ModbusError, Unit};
use sandgate_map::{Entry, Map, Table};

/// Registers or bits in a row that one request reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    pub table: Table,
    pub first: u16,
    pub count: u16,
    /// Whether the device may refuse it.
    pub is_optional: bool,
}

/// The blocks in which entries are read. An entry that some devices do not have
/// has a block of its own, so that it takes no other with it.
pub fn blocks<'a>(entries: impl Iterator<Item = &'a Entry>, map: &Map) -> Vec<Block> {
    let mut wanted: Vec<Block> = entries
        .filter_map(|entry| {
            let (table, first) = entry.place()?;
            Some(Block { table, first, count: entry.length(), is_optional: entry.optional })
        })
        .collect();
    wanted.sort_by_key(|block| (block.is_optional, block.table, block.first, block.count));
    let mut blocks: Vec<Block> = Vec::new();
    for block in wanted {
        match blocks.last_mut() {
            Some(last) if joins(last, &block, map) => last.count = last.count.max(end(&block) - last.first),
            _ => blocks.push(block),
        }
    }
    blocks
}

fn end(block: &Block) -> u16 {
    block.first.saturating_add(block.count)
}

fn joins(last: &Block, next: &Block, map: &Map) -> bool {
    let most = match last.table {
        Table::Holding | Table::Input => map.most,
        Table::Coils | Table::Discrete => map.most.saturating_mul(16),
    };
    let is_same = last == next || (!last.is_optional && !next.is_optional && last.table == next.table);
    is_same && next.first <= end(last).saturating_add(map.gap) && end(next).max(end(last)) - last.first <= most
}

/// What a device holds, as far as it was read.
#[derive(Debug, Default)]
pub struct Image(Vec<(Block, Vec<u16>)>);

impl Image {
    /// Reads blocks of a unit. One that the device may refuse is left out when it does.
    pub fn read(&mut self, unit: &Unit, blocks: &[Block]) -> Result<(), ModbusError> {
        for block in blocks {
            match ask(unit, block) {
                Ok(words) => self.0.push((*block, words)),
                Err(ModbusError::DeviceException(_)) if block.is_optional => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The registers of an entry; none when they were not read.
    pub fn words(&self, entry: &Entry) -> Option<&[u16]> {
        let (table, first) = entry.place()?;
        let length = usize::from(entry.length());
        self.0.iter().find_map(|(block, words)| {
            let offset = usize::from(first.checked_sub(block.first).filter(|_| block.table == table)?);
            words.get(offset..offset + length)
        })
    }
}

fn ask(unit: &Unit, block: &Block) -> Result<Vec<u16>, ModbusError> {
    let Block { table, first, count, .. } = *block;
    let of_bits = |bits: Vec<bool>| bits.into_iter().map(u16::from).collect();
    match table {
        Table::Holding => unit.read_holding_registers(first, count),
        Table::Input => unit.read_input_registers(first, count),
        Table::Coils => unit.read_coils(first, count).map(of_bits),
        Table::Discrete => unit.read_discrete_inputs(first, count).map(of_bits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(gap: u16, most: u16) -> Map {
        let map = serde_json::json!({"unit": 1, "gap": gap, "most": most});
        serde_json::from_value(map).unwrap()
    }

    fn entries(list: &[serde_json::Value]) -> Vec<Entry> {
        list.iter().map(|entry| serde_json::from_value(entry.clone()).unwrap()).collect()
    }

    #[test]
    fn neighbours_are_read_at_once_within_gap_and_limit_and_optional_ones_alone() {
        let all = entries(&[
            serde_json::json!({"holding": 10, "type": "f32"}),
            serde_json::json!({"holding": 12}),
            serde_json::json!({"holding": 15}),
            serde_json::json!({"input": 12}),
            serde_json::json!({"holding": 13, "optional": true}),
            serde_json::json!({"coil": 3}),
            serde_json::json!({"coil": 4}),
            serde_json::json!({"holding": 65535}),
            serde_json::json!({"text": "x"}),
        ]);
        let blocks = |gap, most| -> Vec<(Table, u16, u16, bool)> {
            let blocks = super::blocks(all.iter(), &map(gap, most));
            blocks.iter().map(|block| (block.table, block.first, block.count, block.is_optional)).collect()
        };
        let rest = [
            (Table::Holding, 65535, 1, false),
            (Table::Input, 12, 1, false),
            (Table::Coils, 3, 2, false),
            (Table::Holding, 13, 1, true),
        ];
        assert_eq!(blocks(0, 125)[..2], [(Table::Holding, 10, 3, false), (Table::Holding, 15, 1, false)]);
        assert_eq!(blocks(0, 125)[2..], rest);
        assert_eq!(blocks(2, 125)[..1], [(Table::Holding, 10, 6, false)]);
        assert_eq!(blocks(2, 125)[1..], rest);
        assert_eq!(blocks(2, 2)[..3].iter().map(|block| block.2).collect::<Vec<_>>(), [2, 1, 1]);
    }
}
