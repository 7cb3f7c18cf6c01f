// What types are made from: the same for a contract file and for a service.
import { Fault, jsonPath } from './fault.js';
import { parsePointer, valueAt } from './keywords.js';

/**
 * A schema: a component, and a place in it.
 * @typedef {{component: string, pointer: readonly string[]}} Target
 * @typedef {{type: string, delivery: 'durable' | 'latest' | 'ephemeral', publish: boolean, schema?: Target}} EventModel
 * @typedef {{name: string, request?: Target, reply?: Target}} CallModel
 * `presence` is absent without presence, and null if nothing is known of the info.
 * @typedef {{pattern: string, events: EventModel[], presence?: Target | null}} ChannelModel
 */

/** A contract. */
export class Model {
  /** @param {string} source The file or address, for errors. */
  constructor(source) {
    this.source = source;
    /** The hash of the contract. */
    this.hash = '';
    /** @type {ChannelModel[]} */
    this.channels = [];
    /** @type {CallModel[]} */
    this.calls = [];
    /** @type {Map<string, any>} Schemas by name. */
    this.components = new Map();
    /** @type {(reference: string, component: string) => {component: string, fragment: string}} Finds what a reference names. */
    this.locate = () => {
      throw new Error('a model needs a way to find references');
    };
    /** @type {(component: string) => readonly (string | number)[]} Where a component is in its source, for errors. */
    this.placeOf = (component) => ['components', 'schemas', component];
  }

  /**
   * Resolves a reference.
   * @param {string} reference
   * @param {string} component The component that contains it.
   * @param {readonly (string | number)[]} place Where it is in the component.
   * @returns {Target}
   */
  resolve(reference, component, place) {
    const found = this.locate(reference, component);
    let fragment;
    try {
      fragment = decodeURIComponent(found.fragment);
    } catch {
      throw this.fault(component, place, `${quote(reference)} is not percent-encoded UTF-8`);
    }
    const target = { component: found.component, pointer: parsePointer(fragment) };
    if (this.components.has(target.component) && this.schemaAt(target) !== undefined) return target;
    throw this.fault(component, place, `${quote(reference)} refers to nothing in this contract, and nothing is fetched`);
  }

  /** @param {Target} target @returns {any} */
  schemaAt({ component, pointer }) {
    return valueAt(this.components.get(component), pointer);
  }

  /**
   * @param {string} component
   * @param {readonly (string | number)[]} place
   * @param {string} reason
   */
  fault(component, place, reason) {
    return new Fault(this.source, jsonPath([...this.placeOf(component), ...place]), reason);
  }
}

/** @param {unknown} text */
export function quote(text) {
  return JSON.stringify(String(text).slice(0, 100));
}
