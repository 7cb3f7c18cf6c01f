// What Grafana 10 and 12 say that dashboards may hold. `whole` takes a dashboard less its panels; a panel is a row, a graph or a number.
// Their options are free-form in Dashboard itself: each plugin has types of its own.
import type * as ten from "grafana-10";
import type * as twelve from "@grafana/schema";
import type * as graph10 from "./node_modules/grafana-10/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js";
import type * as graph12 from "./node_modules/@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.js";
import type * as stat10 from "./node_modules/grafana-10/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js";
import type * as stat12 from "./node_modules/@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.js";
import type * as query from "./node_modules/grafana-10/dist/esm/raw/composable/prometheus/dataquery/x/PrometheusDataQuery_types.gen.js";

/** The same, with the words of enumerations for the enumerations: JSON has no other. */
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;

type Query = Plain<Omit<query.PrometheusDataQuery, "datasource">> & { datasource: { type: "prometheus"; uid: string } };

type Shown<P extends { fieldConfig?: unknown }, Kind, Options, Custom> = Plain<Omit<P, "type" | "title" | "description" | "options" | "fieldConfig" | "targets">> & {
  type: Kind;
  title: string;
  description: string;
  options: Partial<Plain<Options>>; // what is left out is Grafana's default
  fieldConfig: {
    defaults: Plain<Omit<NonNullable<ten.FieldConfigSource["defaults"]>, "custom">> & { unit: string; custom?: Plain<Custom> };
    overrides: never[];
  };
  targets: Query[];
};

export type Whole10 = Plain<Omit<ten.Dashboard, "panels">>;
export type Whole12 = Plain<Omit<twelve.Dashboard, "panels">>;
export type Row10 = Plain<ten.RowPanel>;
export type Row12 = Plain<twelve.RowPanel>;
export type Graph10 = Shown<ten.Panel, "timeseries", graph10.Options, graph10.FieldConfig>;
export type Graph12 = Shown<twelve.Panel, "timeseries", graph12.Options, graph12.FieldConfig>;
export type Stat10 = Shown<ten.Panel, "stat", stat10.Options, never>;
export type Stat12 = Shown<twelve.Panel, "stat", stat12.Options, never>;
