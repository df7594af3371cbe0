"""What is run inside a page: its origin's storage read, and written.

The form is that of Playwright's `storage_state`: a record of IndexedDB has `value` where JSON can hold it, else
`valueEncoded`, in which what JSON lacks is an object with a short name: {d: a date}, {bi: a bigint}, {ta: {b, k}: an
array of bytes as base64 and its kind}, {v: "undefined"} and so on.
"""

from __future__ import annotations

from typing import Final

_COMMON: Final = """
const kinds = {i8: Int8Array, ui8: Uint8Array, ui8c: Uint8ClampedArray, i16: Int16Array, ui16: Uint16Array,
  i32: Int32Array, ui32: Uint32Array, f32: Float32Array, f64: Float64Array, bi64: BigInt64Array, bui64: BigUint64Array};
const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = request.onblocked = () => reject(request.error);
});
"""

# Arguments: the mark of what is known already, and the most characters. Gives null where a page has no storage, else
# {origin, mark, size, storage}; storage is left out if it is the known one or too large.
READ: Final = (
    "async ([known, most]) => {"
    + _COMMON
    + """
const base64 = bytes => btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(''));
const view = array => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const plain = value => value === null || typeof value === 'string' || typeof value === 'boolean' ||
  (typeof value === 'number' && Number.isFinite(value) && !Object.is(value, -0)) ||
  (Array.isArray(value) ? value.every(plain) : typeof value === 'object' && value.constructor === Object &&
    Object.values(value).every(plain));
const encode = (value, seen) => {
  if (value === undefined || typeof value === 'function' || typeof value === 'symbol') return {v: 'undefined'};
  if (value === null) return {v: 'null'};
  if (typeof value === 'bigint') return {bi: String(value)};
  if (typeof value === 'number' && (!Number.isFinite(value) || Object.is(value, -0)))
    return {v: Object.is(value, -0) ? '-0' : String(value)};
  if (typeof value !== 'object') return value;
  if (seen.has(value)) return {ref: seen.get(value)};
  if (value instanceof Date) return {d: value.toJSON()};
  if (value instanceof RegExp) return {r: {p: value.source, f: value.flags}};
  if (value instanceof ArrayBuffer) return {ab: {b: base64(new Uint8Array(value))}};
  for (const [k, kind] of Object.entries(kinds))
    if (value instanceof kind) return {ta: {b: base64(view(value)), k}};
  const id = seen.size + 1;
  seen.set(value, id);
  if (Array.isArray(value)) return {a: value.map(one => encode(one, seen)), id};
  const pair = ([k, v]) => ({k: encode(k, seen), v: encode(v, seen)});
  if (value instanceof Map) return {m: [...value].map(pair), id};
  if (value instanceof Set) return {s: [...value].map(one => encode(one, seen)), id};
  if (value.constructor !== Object) throw new Error('a ' + value.constructor.name);
  return {o: Object.entries(value).map(([k, v]) => ({k, v: encode(v, seen)})), id};
};
const put = (record, name, value) => {
  if (plain(value)) record[name] = value; else record[name + 'Encoded'] = encode(value, new Map());
};
const path = keyPath => Array.isArray(keyPath) ? {keyPathArray: [...keyPath]} :
  typeof keyPath === 'string' ? {keyPath} : {};
let local;
try { local = window.localStorage; } catch { return null; }
if (!local || location.origin === 'null') return null;
const storage = {origin: location.origin, localStorage: []};
let size = 0;
for (let index = 0; index < local.length; index++) {
  const name = local.key(index), value = local.getItem(name);
  size += name.length + value.length;
  if (size <= most) storage.localStorage.push({name, value});
}
storage.localStorage.sort((a, b) => a.name < b.name ? -1 : 1);
let lost = null;
const bases = window.indexedDB && indexedDB.databases ? await indexedDB.databases() : [];
for (const base of bases) {
  try {
    const db = await done(indexedDB.open(base.name));
    const stores = [];
    try {
      for (const name of db.objectStoreNames) {
        const store = db.transaction(name, 'readonly').objectStore(name);
        const [keys, values] = await Promise.all([store.getAllKeys(), store.getAll()].map(done));
        const records = keys.map((key, index) => {
          const record = {};
          if (store.keyPath === null) put(record, 'key', key);
          put(record, 'value', values[index]);
          return record;
        });
        const indexes = [...store.indexNames].map(name => store.index(name)).map(index =>
          ({name: index.name, ...path(index.keyPath), multiEntry: index.multiEntry, unique: index.unique}));
        stores.push({name, records, indexes, autoIncrement: store.autoIncrement, ...path(store.keyPath)});
      }
      (storage.indexedDB ||= []).push({name: db.name, version: db.version, stores});
    } finally { db.close(); }
  } catch (error) { lost = base.name + ': ' + error.message; }
}
const text = JSON.stringify(storage);
size = Math.max(size, text.length);
let one = 0xdeadbeef, two = 0x41c6ce57;
for (let index = 0; index < text.length; index++) {
  const code = text.charCodeAt(index);
  one = Math.imul(one ^ code, 2654435761);
  two = Math.imul(two ^ code, 1597334677);
}
const mark = text.length + ':' + (one >>> 0) + ':' + (two >>> 0);
const answer = {origin: location.origin, mark, size, lost};
if (mark !== known && size <= most) answer.storage = storage;
return answer;
}"""
)

# Argument: an origin's storage. What the page has already is left alone.
WRITE: Final = (
    "async storage => {"
    + _COMMON
    + """
const bytes = text => Uint8Array.from(atob(text), one => one.charCodeAt(0));
const decode = (value, refs) => {
  if (typeof value !== 'object' || value === null) return value;
  if ('ref' in value) return refs.get(value.ref);
  if ('v' in value) return {undefined, null: null, NaN, Infinity, '-Infinity': -Infinity, '-0': -0}[value.v];
  if ('bi' in value) return BigInt(value.bi);
  if ('d' in value) return new Date(value.d);
  if ('r' in value) return new RegExp(value.r.p, value.r.f);
  if ('ab' in value) return bytes(value.ab.b).buffer;
  if ('ta' in value) return new kinds[value.ta.k](bytes(value.ta.b).buffer);
  const made = 'a' in value ? [] : 'm' in value ? new Map() : 's' in value ? new Set() : {};
  refs.set(value.id, made);
  for (const one of value.a || []) made.push(decode(one, refs));
  for (const {k, v} of value.m || []) made.set(decode(k, refs), decode(v, refs));
  for (const one of value.s || []) made.add(decode(one, refs));
  for (const {k, v} of value.o || []) Object.defineProperty(made, k,
    {value: decode(v, refs), writable: true, enumerable: true, configurable: true});
  return made;
};
const get = (record, name) => name + 'Encoded' in record ? decode(record[name + 'Encoded'], new Map()) : record[name];
for (const {name, value} of storage.localStorage || [])
  if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
const there = new Set((storage.indexedDB || []).length ? (await indexedDB.databases()).map(base => base.name) : []);
for (const base of storage.indexedDB || []) {
  if (there.has(base.name)) continue;
  const opening = indexedDB.open(base.name, base.version);
  opening.onupgradeneeded = () => {
    for (const store of base.stores) {
      const made = opening.result.createObjectStore(store.name,
        {autoIncrement: store.autoIncrement, keyPath: store.keyPathArray ?? store.keyPath ?? null});
      for (const index of store.indexes || []) made.createIndex(index.name, index.keyPathArray ?? index.keyPath,
        {unique: index.unique, multiEntry: index.multiEntry});
    }
  };
  const db = await done(opening);
  try {
    for (const store of base.stores) {
      if (!store.records.length) continue;
      const into = db.transaction(store.name, 'readwrite').objectStore(store.name);
      await Promise.all(store.records.map(record => done('value' in record || 'valueEncoded' in record ?
        into.keyPath === null ? into.put(get(record, 'value'), get(record, 'key')) : into.put(get(record, 'value')) :
        Promise.reject(new Error('a record without a value')))));
    }
  } finally { db.close(); }
}
}"""
)
